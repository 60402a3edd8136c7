"""PEFT's side of tests/interop: run with a folder that has `base` (a Llama or a GPT-2), `ids.json` (rows of token ids) and `ours/*` (adapters to load).

Writes `ours/NAME/logits.safetensors` for each of ours, and `theirs/NAME`: adapters made here, each with `logits.safetensors` of the adapter
beside the base and, as `merged`, after merge_and_unload; `base_logits.safetensors` are the base's alone. Everything runs in float64, so what is
left of a difference is the reader's.
"""

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

root = Path(sys.argv[1])
rows = json.loads((root / "ids.json").read_text())


def base():
    return transformers.AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model):
    return torch.cat([model(torch.tensor([row])).logits[0] for row in rows]).float().contiguous()


def load_ours(folder):
    # A key that is missing or one too many is only a warning in PEFT.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base(), folder, torch_dtype=torch.float64).eval()
    odd = [str(w.message) for w in said if "missing" in str(w.message).lower() or "unexpected" in str(w.message).lower()]
    assert not odd, (folder, odd)
    again = folder / "again"
    model.float().save_pretrained(again)
    ours, theirs = load_file(folder / "adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys(), (folder, ours.keys() ^ theirs.keys())
    assert all(torch.equal(ours[k], theirs[k]) for k in ours), folder
    save_file({"logits": logits(model.double())}, folder / "logits.safetensors")


def make(name, **settings):
    torch.manual_seed(len(name))
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **settings)).float()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_B" in key:
                p.normal_(0, 0.1)
            elif "lora_magnitude_vector" in key:
                p.mul_(1 + 0.2 * torch.randn_like(p))
            elif "modules_to_save" in key:
                p.add_(0.05 * torch.randn_like(p))
    folder = root / "theirs" / name
    model.save_pretrained(folder)
    # What is compared is what was saved: float32 numbers, computed with in float64.
    model = PeftModel.from_pretrained(base(), folder).double().eval()
    beside = logits(model)
    save_file({"logits": beside, "merged": logits(model.merge_and_unload())}, folder / "logits.safetensors")


print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
save_file({"logits": logits(base())}, root / "base_logits.safetensors")
for folder in sorted((root / "ours").iterdir()):
    load_ours(folder)
if json.loads((root / "base/config.json").read_text())["model_type"] == "gpt2":
    make("plain", r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    make("all-linear", r=4, lora_alpha=8, target_modules="all-linear")
    make(
        "patterns",
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={r"h\.0\.attn\..*": 2, "c_fc": 7},
        alpha_pattern={"attn.c_attn": 3, r"transformer\.h\.1\.mlp\.c_fc": 5.5},
    )
    make("regex", r=4, lora_alpha=8, target_modules=r".*\.(attn\.c_attn|mlp\.c_proj)")
    make("rslora", r=4, lora_alpha=8, target_modules=["c_fc", "transformer.h.0.attn.c_proj"], use_rslora=True)
    make("dora", r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)
else:
    make("plain", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    make("all-linear", r=4, lora_alpha=8, target_modules="all-linear")
    make("rslora", r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True)
    make(
        "patterns",
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={r"layers\.0\.self_attn\..*": 2, "up_proj": 7},
        alpha_pattern={"self_attn.q_proj": 3, r"model\.layers\.1\.mlp\.up_proj": 5.5},
    )
    make("regex", r=4, lora_alpha=8, target_modules=r".*\.(self_attn\.[qv]|mlp\.down)_proj")
    make("paths", r=4, lora_alpha=8, target_modules=["model.layers.1.mlp.up_proj", "self_attn.o_proj"])
    make("excluded", r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["o_proj", "model.layers.0.mlp.gate_proj"])
    make("layers", r=4, lora_alpha=8, target_modules=["v_proj", "up_proj"], layers_to_transform=[1], layers_pattern="layers")
    make("layer", r=4, lora_alpha=8, target_modules=["v_proj", "model.layers.1.mlp.up_proj"], layers_to_transform=0)
    make("dora", r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)
    make("dora-rslora", r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], use_dora=True, use_rslora=True)
    make("head", r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"])
    make("embedding", r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
