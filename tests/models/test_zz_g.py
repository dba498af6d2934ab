def test_fp(codec_lm_config, tmp_path):
    import os, time, torch, numpy as np, sys, runpy
    from itertools import islice
    from whalesong.corpora.music_loops import write_music_loops
    from whalesong.modules.codec.files import save_codec
    from whalesong.modules.codec.mel_rvq import MelRVQSizes, fit_mel_rvq
    from whalesong.data.datamodule import build_loader
    from lhotse import CutSet
    import whalesong
    d="/tmp/g_demo"; os.makedirs(d, exist_ok=True)
    if not os.path.exists(d+"/loops"):
        write_music_loops(d+"/loops", num_train=120, num_validation=1, num_test=24, seconds=2, shard_size=40)
    clips=[torch.from_numpy(c.load_audio()[0]) for c in islice(CutSet.from_shar(in_dir=d+"/loops/train"), 60)]
    save_codec(fit_mel_rvq(clips, MelRVQSizes(num_codebooks=3, codebook_size=64), seed=0), d+"/codec.safetensors")
    torch.manual_seed(0)
    cfg=codec_lm_config({"prepend_cond_ids": ["prompt"]}, pretransform={"type":"mel_rvq","config":{"model_path":d+"/codec.safetensors"}})
    m=whalesong.CodecLMModel(cfg)
    opt=torch.optim.AdamW(m.parameters(), lr=3e-3)
    loader=build_loader({"shar_path":d+"/loops/train","batch_size":8,"shuffle":True}, m.parts.train_collator, path="train_ds")
    m.train(); t=time.time(); n=0
    batches=list(loader)
    while time.time()-t<60:
        for b in batches:
            opt.zero_grad(); m.parts.loss.loss_fn(b)["loss"].backward(); opt.step(); n+=1
    print("steps", n)
    m.eval().save_to(d+"/music.nemo")
