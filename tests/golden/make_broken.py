#!/usr/bin/env python3
"""SPDX-License-Identifier: Apache-2.0
make_broken.py BASES_DIR OUT_DIR : derives negative (and must-accept) cases from the tiny genuine checkpoints in BASES_DIR
(modelopt-nvfp4, modelopt-w4a16, modelopt-mixed, ct-nvfp4, ct-nvfp4a16). Pure standard library. Each case dir has expected.json:
{"expect":"reject"|"accept", "why":..., "same_as": base whose 'a16'/'native' reference outputs must be reproduced}."""
import json,os,shutil,struct,sys,copy
B,O=sys.argv[1:3]; shutil.rmtree(O,ignore_errors=True); os.makedirs(O)
def load(d):
    b=open(f"{B}/{d}/model.safetensors","rb").read(); n=struct.unpack("<Q",b[:8])[0]; h=json.loads(b[8:8+n]); m=h.pop("__metadata__",{"format":"pt"}); D=b[8+n:]
    return {k:[v["dtype"],v["shape"],D[v["data_offsets"][0]:v["data_offsets"][1]]] for k,v in h.items()},m
def blob(T,meta={"format":"pt"},pad=0,hdr=None,order=None):
    h={"__metadata__":meta}; D=b""
    for k in(order or T): dt,s,x=T[k]; h[k]={"dtype":dt,"shape":s,"data_offsets":[len(D),len(D)+len(x)]}; D+=x
    if hdr: hdr(h)
    j=json.dumps(h,separators=(",",":")).encode(); j+=b" "*((-len(j))%8+pad); return struct.pack("<Q",len(j))+j+D
cases=[]
def case(name,base,expect,why,tens=None,raw=None,cfg=None,hq=None,same=None,**kw):
    d=f"{O}/{name}"; shutil.copytree(f"{B}/{base}",d); os.remove(f"{d}/model.safetensors")
    T,_=load(base); 
    if tens: T=tens(T) or T
    b=blob(T,**kw); 
    if raw: b=raw(b)
    open(f"{d}/model.safetensors","wb").write(b)
    for f,fn in(("config.json",cfg),("hf_quant_config.json",hq)):
        if fn and os.path.exists(f"{d}/{f}"):
            j=json.load(open(f"{d}/{f}")); r=fn(j)
            if r=="delete": os.remove(f"{d}/{f}")
            else: json.dump(j,open(f"{d}/{f}","w"),indent=1)
    e={"expect":expect,"why":why,"base":base}; 
    if same: e["same_as"]=same
    json.dump(e,open(f"{d}/expected.json","w"),indent=1); cases.append((name,e))
def drop(*pats):
    def f(T):
        ks=[k for k in T if any(p in k for p in pats)]; assert ks,pats
        for k in ks: del T[k]
    return f
def setv(sub,fn):
    def f(T):
        ks=[k for k in T if sub in k]; assert ks,sub
        for k in ks: T[k]=fn(*T[k])
    return f
f32=lambda *v: struct.pack("<%df"%len(v),*v)
M,W,X,C,CA="modelopt-nvfp4","modelopt-w4a16","modelopt-mixed","ct-nvfp4","ct-nvfp4a16"
E="model.layers.1.mlp.experts.2."
R="reject"
case("mo_missing_weight_scale_2",M,R,"expert weight_scale_2 absent",drop(E+"gate_proj.weight_scale_2"))
case("mo_missing_weight_scale",M,R,"expert weight_scale absent",lambda T:T.pop(E+"up_proj.weight_scale") and None)
case("mo_missing_input_scale_w4a4",M,R,"NVFP4 (W4A4) needs input_scale; a W4A4 run must not invent one (a run forced to 16-bit activations may accept)",drop(E+"down_proj.input_scale"))
case("mo_missing_expert",M,R,"expert 3 of layer 1 absent",drop("model.layers.1.mlp.experts.3."))
case("mo_extra_expert_index",M,R,"expert index 4 present though num_experts is 4",lambda T:T.update({k.replace("experts.3.","experts.4."):v for k,v in list(T.items()) if "layers.1.mlp.experts.3." in k}))
case("mo_scale_is_nan_e4m3",M,R,"block scale byte 0x7f is NaN in E4M3FN",setv(E+"gate_proj.weight_scale",lambda d,s,b:[d,s,b"\x7f"+b[1:]] if d=="F8_E4M3" else [d,s,b]))
case("mo_weight_scale_2_inf",M,R,"per-tensor scale infinite",setv(E+"gate_proj.weight_scale_2",lambda d,s,b:[d,s,f32(float("inf"))]))
case("mo_scale_wrong_dtype",M,R,"weight_scale labelled U8",setv(E+"gate_proj.weight_scale",lambda d,s,b:["U8",s,b] if d=="F8_E4M3" else [d,s,b]))
case("mo_weight_wrong_dtype",M,R,"packed weight labelled I8",lambda T:T.update({E+"gate_proj.weight":["I8"]+T[E+"gate_proj.weight"][1:]}))
case("mo_scale_transposed",M,R,"weight_scale shape transposed",setv(E+"gate_proj.weight_scale",lambda d,s,b:[d,s[::-1],b] if d=="F8_E4M3" else [d,s,b]))
def g32(j): 
    q=j.get("quantization",j.get("quantization_config"))
    if "group_size" in q: q["group_size"]=32
    for g in q.get("config_groups",{}).values():
        for k in("weights","input_activations"):
            if g.get(k): g[k]["group_size"]=32
case("mo_group_size_32",M,R,"group_size 32 declared (NVFP4 is 16, and the tensors are)",cfg=g32,hq=g32)
case("ct_group_size_32",C,R,"group_size 32 declared",cfg=g32)
def unk(j):
    q=j.get("quantization",j.get("quantization_config")); k=sorted(q["quantized_layers"])[0]; q["quantized_layers"][k]["quant_algo"]="NVFP3"
case("mo_mixed_unknown_algo",X,R,"quantized_layers names an unknown algorithm",cfg=unk,hq=unk)
def miss(j):
    q=j.get("quantization",j.get("quantization_config")); q["quantized_layers"]={k:v for k,v in q["quantized_layers"].items() if k!="model.layers.1.self_attn.q_proj"}
    for g in q.get("config_groups",{}).values(): g["targets"]=[t for t in g["targets"] if t!="model.layers.1.self_attn.q_proj"]
case("mo_mixed_layer_unlisted",X,R,"an FP8 tensor's layer is not in quantized_layers (would be read as 16-bit)",cfg=miss,hq=miss)
def alg(v):
    def f(j): j.get("quantization",j.get("quantization_config"))["quant_algo"]=v
    return f
case("mo_unknown_algo",M,R,"quant_algo unknown",cfg=alg("NVFP4_XYZ"),hq=alg("NVFP4_XYZ"))
case("unknown_quant_method",C,R,"quant_method unknown",cfg=lambda j:j["quantization_config"].update(quant_method="awq"))
case("ct_unknown_format",C,R,"format unknown",cfg=lambda j:(j["quantization_config"].update(format="int-quantized"),[g.update(format="int-quantized") for g in j["quantization_config"]["config_groups"].values()]) and None)
case("ct_missing_global_scale",C,R,"weight_global_scale absent",drop(E+"gate_proj.weight_global_scale"))
case("ct_global_scale_zero",C,R,"weight_global_scale 0 is a divisor",setv(E+"gate_proj.weight_global_scale",lambda d,s,b:[d,s,f32(0.0)]))
case("ct_global_scale_nan",C,R,"weight_global_scale NaN",setv(E+"gate_proj.weight_global_scale",lambda d,s,b:[d,s,f32(float("nan"))]))
case("ct_global_scale_negative",C,R,"weight_global_scale negative",setv(E+"gate_proj.weight_global_scale",lambda d,s,b:[d,s,f32(-29440.0)]))
case("ct_packed_missing",C,R,"weight_packed absent",drop(E+"gate_proj.weight_packed"))
case("cfg_topk_gt_experts",M,R,"num_experts_per_tok > num_experts",cfg=lambda j:j.update(num_experts_per_tok=9))
case("cfg_router_shape",M,R,"num_experts in config differs from the router's rows",cfg=lambda j:j.update(num_experts=8))
case("st_truncated",M,R,"file cut at 60 %",raw=lambda b:b[:int(len(b)*.6)])
case("st_empty",M,R,"empty file",raw=lambda b:b"")
case("st_header_len_overflow",M,R,"header length 2^64-1",raw=lambda b:b"\xff"*8+b[8:])
case("st_header_len_past_eof",M,R,"header length beyond the file",raw=lambda b:struct.pack("<Q",len(b)*4)+b[8:])
case("st_header_not_json",M,R,"header is not JSON",raw=lambda b:b[:8]+b"["+b[9:])
def hov(h):
    ks=[k for k in h if k!="__metadata__"]; a,b=ks[3],ks[4]; n=h[b]["data_offsets"][1]-h[b]["data_offsets"][0]; s=h[a]["data_offsets"][0]; h[b]["data_offsets"]=[s,s+n]
case("st_overlapping_offsets",M,R,"two tensors share bytes (and leave a hole)",hdr=hov)
def hpast(h): k=list(h)[-1]; s,e=h[k]["data_offsets"]; h[k]["data_offsets"]=[s+(1<<40),e+(1<<40)]
case("st_offset_past_end",M,R,"data_offsets beyond the file",hdr=hpast)
def hneg(h): k=list(h)[-1]; s,e=h[k]["data_offsets"]; h[k]["data_offsets"]=[e,s]
case("st_offset_reversed",M,R,"end before begin",hdr=hneg)
def hshape(h): h["model.embed_tokens.weight"]["shape"]=[4096,65]
case("st_shape_vs_bytes",M,R,"shape does not match the byte length",hdr=hshape)
def hbig(h): h["model.embed_tokens.weight"]["shape"]=[1<<40,1<<40]
case("st_shape_product_overflow",M,R,"shape product overflows 64 bits",hdr=hbig)
case("st_unknown_dtype",M,R,"dtype name unknown",hdr=lambda h:h["model.norm.weight"].update(dtype="BF17"))
def dup(b):
    n=struct.unpack("<Q",b[:8])[0]; h=b[8:8+n].rstrip(b" "); j=json.loads(h); v=json.dumps(j["model.norm.weight"],separators=(",",":")).encode(); h2=h[:-1]+b',"model.norm.weight":'+v+b"}"; h2+=b" "*((-len(h2))%8); return struct.pack("<Q",len(h2))+h2+b[8+n:]
case("st_duplicate_key",M,R,"a tensor name twice in the header",raw=dup)
case("cfg_not_json",M,R,"config.json cut"); p=f"{O}/cfg_not_json/config.json"; s=open(p).read(); open(p,"w").write(s[:len(s)//2])
case("index_missing_shard",M,R,"index names a shard that is not there"); d=f"{O}/index_missing_shard"; T,_=load(M); os.rename(f"{d}/model.safetensors",f"{d}/model-00001-of-00002.safetensors")
json.dump({"metadata":{},"weight_map":{k:"model-0000%d-of-00002.safetensors"%(1+(i%2)) for i,k in enumerate(T)}},open(f"{d}/model.safetensors.index.json","w"))
# ---- FP8: layer 0's experts and every attention of the mixed checkpoint, static scales per tensor
F,Q="model.layers.0.mlp.experts.2.","model.layers.1.self_attn.q_proj."
def put(name,fn):
    def f(T): assert name in T,name; T[name]=fn(*T[name])
    return f
value=lambda v: lambda d,s,b:[d,s,f32(v)]
case("fp8_weight_nan_code",X,R,"a code of an FP8 weight is 0x7f, a NaN",put(F+"up_proj.weight",lambda d,s,b:[d,s,b[:3*64+5]+b"\x7f"+b[3*64+6:]]))
case("fp8_weight_negative_nan_code",X,R,"the last code of an FP8 linear is 0xff, a NaN",put(Q+"weight",lambda d,s,b:[d,s,b[:-1]+b"\xff"]))
case("fp8_missing_weight_scale",X,R,"weight_scale of an FP8 expert absent",lambda T:T.pop(F+"gate_proj.weight_scale") and None)
case("fp8_linear_missing_weight_scale",X,R,"weight_scale of an FP8 linear absent",lambda T:T.pop(Q+"weight_scale") and None)
case("fp8_missing_input_scale",X,R,"static FP8 activations need input_scale",lambda T:T.pop(F+"down_proj.input_scale") and None)
case("fp8_linear_missing_input_scale",X,R,"static FP8 activations of a linear need input_scale",lambda T:T.pop(Q+"input_scale") and None)
for word,v in(("zero",0.0),("negative",-0.01),("nan",float("nan")),("inf",float("inf"))):
    case("fp8_weight_scale_"+word,X,R,"weight_scale of an FP8 expert is "+word,put(F+"down_proj.weight_scale",value(v)))
    case("fp8_input_scale_"+word,X,R,"static input_scale of an FP8 linear is "+word,put(Q+"input_scale",value(v)))
case("fp8_weight_wrong_dtype",X,R,"FP8 weight labelled I8",put(F+"gate_proj.weight",lambda d,s,b:["I8",s,b]))
case("fp8_weight_e5m2",X,R,"FP8 weight of the other FP8, E5M2",put(Q+"weight",lambda d,s,b:["F8_E5M2",s,b]))
case("fp8_weight_left_in_bf16",X,R,"weight in BF16 where the config says FP8",put(Q+"weight",lambda d,s,b:["BF16",s,b"\0\x3f"*len(b)]))
case("fp8_weight_transposed",X,R,"FP8 weight of shape [k,n]",put("model.layers.0.self_attn.k_proj.weight",lambda d,s,b:[d,s[::-1],b]))
case("fp8_weight_scale_per_row",X,R,"weight_scale a row where the config says one a tensor",put(Q+"weight_scale",lambda d,s,b:[d,[64],b*64]))
case("fp8_weight_scale_wrong_dtype",X,R,"weight_scale labelled I32",put(F+"up_proj.weight_scale",lambda d,s,b:["I32",s,b]))
case("fp8_input_scale_wrong_shape",X,R,"input_scale with two values",put(F+"up_proj.input_scale",lambda d,s,b:[d,[2],b*2]))
# ---- must be accepted
def addin(vals,name):
    def f(T):
        for i,k in enumerate([k for k in T if k.endswith((".weight_scale_2",".weight_global_scale"))]): b=k.rsplit(".",1)[0]; T[b+"."+name]=["F32",[] if name=="input_scale" else [1],f32(vals[i%len(vals)])]
    return f
nan,inf=float("nan"),float("inf")
case("ok_w4a16_nan_input_scale",W,"accept","W4A16_NVFP4 with NaN/Inf/0/denormal input_scale: must be ignored",addin([nan,inf,0.0,1e-45,-1.0],"input_scale"),same=[W,"a16"])
def real(T):
    S,_=load(M)
    for k,v in S.items():
        if k.endswith(".input_scale"): T[k]=v
case("ok_w4a16_real_input_scale",W,"accept","W4A16_NVFP4 with genuine calibrated input_scale: must run with 16-bit activations",real,same=[W,"a16"])
case("ok_ct_a16_garbage_input_global_scale",CA,"accept","compressed-tensors W4A16 with garbage input_global_scale: must be ignored",addin([nan,1e30,0.0,-7.0,inf],"input_global_scale"),same=[CA,"a16"])
case("ok_header_padding",M,"accept","header padded with spaces, extra metadata",pad=4096,meta={"format":"pt","x":"y"},same=[M,"native"])
case("ok_reversed_order",M,"accept","tensor data in reverse order",order=list(load(M)[0])[::-1],same=[M,"native"])
case("ok_no_hf_quant_config",M,"accept","only config.json's quantization_config",hq=lambda j:"delete",same=[M,"native"])
case("ok_only_hf_quant_config",M,"accept","only hf_quant_config.json (older modelopt exports)",cfg=lambda j:j.pop("quantization_config") and None,same=[M,"native"])
def one(T):
    for k,v in T.items():
        if k.endswith((".weight_scale",".input_scale")) and not v[1]: v[1]=[1]
case("ok_fp8_scales_of_shape_1",X,"accept","FP8 scales of shape [1] instead of []",one,same=[X,"native"])
case("ok_sharded",M,"accept","two shards and an index",same=[M,"native"]); d=f"{O}/ok_sharded"; os.remove(f"{d}/model.safetensors"); ks=list(T); wm={}
for i in(0,1):
    part=ks[i::2]; f=f"model-0000{i+1}-of-00002.safetensors"; open(f"{d}/{f}","wb").write(blob({k:T[k] for k in part})); wm.update({k:f for k in part})
json.dump({"metadata":{"total_size":sum(len(v[2]) for v in T.values())},"weight_map":wm},open(f"{d}/model.safetensors.index.json","w"))
json.dump({n:e for n,e in cases},open(f"{O}/cases.json","w"),indent=1); print(len(cases),"cases",sum(e["expect"]==R for _,e in cases),"reject")
