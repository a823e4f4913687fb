"""Blocks that are switched off, against models from which the same blocks were taken out by hand."""

import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import small_models
from tests.comfy_server import Interrupted, NodeFailed

OFF = (3, 4, 17)


def value(comfy, name):
    return load_file(comfy.base / f"output/{name}.safetensors")["value"]


def sampled(comfy, prompt, **timing):
    """Run a prompt and return what each of its samplers made, by name."""
    result = comfy.run(prompt, **timing)
    names = [node["inputs"]["name"] for node in prompt.values() if node["class_type"] == "TestSaveTensor"]
    assert result["status"]["status_str"] == "success"
    return {name: value(comfy, name) for name in names}


class Native:
    """A prompt for ComfyUI's own nodes."""

    def __init__(self, model=small_models.WAN):
        self.prompt = {
            "model": node("UNETLoader", unet_name=model, weight_dtype="default"),
            "text": node("TestConditioning", seed=1, length=64),
            "empty": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        }

    def toggle(self, name, blocks, model="model"):
        self.prompt[name] = node("DiffLoraBlockToggle", model=[model, 0], blocks=blocks)
        return self

    def sample(self, name, model, steps=2, cfg=1.0):
        self.prompt[f"sample {name}"] = node(
            "KSampler", model=[model, 0], positive=["text", 0], negative=["text", 0], latent_image=["empty", 0], seed=7,
            steps=steps, cfg=cfg, sampler_name="euler", scheduler="simple", denoise=1.0,
        )  # fmt: skip
        self.prompt[f"save {name}"] = node("TestSaveTensor", value=[f"sample {name}", 0], name=name)
        return self


class Wrapper(Native):
    """The same for WanVideoWrapper's nodes."""

    def __init__(self, model=small_models.WAN_WRAPPER, **loader):
        self.prompt = {
            "model": node(
                "WanVideoModelLoader", model=model, base_precision="fp32", quantization="disabled",
                load_device="main_device", attention_mode="sdpa", **loader,
            ),
            "conditioning": node("TestConditioning", seed=1, length=64),
            "text": node("WanVideoTextEmbedBridge", positive=["conditioning", 0], negative=["conditioning", 0]),
            "empty": node("WanVideoEmptyEmbeds", width=64, height=64, num_frames=5),
        }  # fmt: skip

    def toggle(self, name, blocks, model="model"):
        self.prompt[name] = node("DiffLoraBlockToggleWanVideo", model=[model, 0], blocks=blocks)
        return self

    def sample(self, name, model, steps=2, cfg=1.0, **options):
        self.prompt[f"sample {name}"] = node(
            "WanVideoSampler", model=[model, 0], image_embeds=["empty", 0], text_embeds=["text", 0], steps=steps, cfg=cfg,
            shift=5.0, seed=7, force_offload=True, scheduler="unipc", riflex_freq_index=0, **options,
        )  # fmt: skip
        self.prompt[f"save {name}"] = node("TestSaveTensor", value=[f"sample {name}", 0], name=name)
        return self


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def without_blocks(source, target, blocks):
    """A checkpoint from which some blocks are gone, the others renumbered."""
    left = {}
    tensors = load_file(source)
    count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    number = {old: new for new, old in enumerate(i for i in range(count) if i not in blocks)}
    for name, tensor in tensors.items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            if int(block) not in number:
                continue
            name = f"blocks.{number[int(block)]}.{rest}"
        left[name] = tensor
    save_file(left, target)


def with_idle_blocks(source, target, blocks):
    """A checkpoint whose named blocks add nothing: the last layer of each of their three parts is zero.

    For the wrapper, which expects 30 blocks.
    """
    tensors = load_file(source)
    for block in blocks:
        for part in ("self_attn.o", "cross_attn.o", "ffn.2"):
            for kind in ("weight", "bias"):
                tensors[f"blocks.{block}.{part}.{kind}"].zero_()
    save_file(tensors, target)


def test_native_equals_a_checkpoint_without_these_blocks(comfy):
    models = comfy.models("diffusion_models")
    without_blocks(models / small_models.WAN, models / "cut.safetensors", {1})
    prompt = Native().toggle("off", "blocks 1").toggle("none off", "")
    for cfg in (1.0, 3.0):
        prompt.sample(f"whole {cfg}", "model", cfg=cfg).sample(f"off {cfg}", "off", cfg=cfg)
        prompt.sample(f"after {cfg}", "none off", cfg=cfg)
    got = sampled(comfy, prompt.prompt)
    cut = sampled(
        comfy, Native("cut.safetensors").sample("cut 1.0", "model").sample("cut 3.0", "model", cfg=3.0).prompt
    )
    for cfg in (1.0, 3.0):
        assert torch.equal(got[f"off {cfg}"], cut[f"cut {cfg}"])
        assert torch.equal(got[f"after {cfg}"], got[f"whole {cfg}"])
        assert (got[f"off {cfg}"] - got[f"whole {cfg}"]).abs().max() > 0.01


def test_native_toggles_add_up(comfy):
    prompt = Native().toggle("both", "blocks 0,2").toggle("first", "blocks 0").toggle("then", "blocks 2", model="first")
    got = sampled(comfy, prompt.sample("both", "both").sample("then", "then").sample("first", "first").prompt)
    assert torch.equal(got["both"], got["then"])
    assert not torch.equal(got["both"], got["first"])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [("attn", "part of block 0"), ("blocks 9", "selects nothing"), ("blocks 1=2", "either on or off")],
)
def test_a_selection_that_is_no_set_of_blocks_is_an_error_on_the_node(comfy, blocks, message):
    with pytest.raises(NodeFailed, match=message) as failed:
        comfy.run(Native().toggle("off", blocks).sample("x", "off").prompt)
    assert failed.value.node_id == "off"


@pytest.fixture(scope="module")
def idle(comfy, wrapper):
    """The wrapper's small model with the blocks of OFF made idle: what switching them off has to equal."""
    models = comfy.models("diffusion_models")
    with_idle_blocks(models / small_models.WAN_WRAPPER, models / "idle.safetensors", OFF)
    return "idle.safetensors"


BLOCKS = "blocks 3-4,17"


@pytest.mark.usefixtures("wrapper")
class TestWrapper:
    def test_equals_a_checkpoint_whose_blocks_do_nothing_while_the_other_branch_keeps_them(self, comfy, idle):
        prompt = Wrapper().toggle("off", BLOCKS)
        for name, model in (("whole", "model"), ("off", "off"), ("whole again", "model"), ("off again", "off")):
            prompt.sample(name, model, cfg=3.0)
        got = sampled(comfy, prompt.prompt)
        expected = sampled(comfy, Wrapper(idle).sample("idle", "model", cfg=3.0).prompt)["idle"]
        assert torch.equal(got["off"], expected)
        assert torch.equal(got["off again"], expected)
        assert torch.equal(got["whole again"], got["whole"])
        assert (got["off"] - got["whole"]).abs().max() > 0.01

    @pytest.mark.parametrize("first", ["toggle", "loras"])
    def test_before_or_after_unmerged_loras(self, comfy, idle, first):
        # A LoRA would give the idle layers of the other model something to do, so there it leaves those blocks out.
        loras = comfy.models("loras")
        tensors = load_file(loras / small_models.WRAPPER_DENSE)
        idle_keys = tuple(f"lora_unet_blocks_{block}_" for block in OFF)
        save_file(
            {key: tensors[key] for key in tensors if not key.startswith(idle_keys)}, loras / "for_idle.safetensors"
        )

        made, expected = Wrapper(), Wrapper(idle)
        made.toggle("off", BLOCKS, model="model" if first == "toggle" else "loras")
        for prompt, model, file in (
            (made, "off" if first == "toggle" else "model", small_models.WRAPPER_DENSE),
            (expected, "model", "for_idle.safetensors"),
        ):
            select = node("WanVideoLoraSelect", lora=file, strength=1.0, low_mem_load=False, merge_loras=False)
            prompt.prompt |= {"lora": select, "loras": node("WanVideoSetLoRAs", model=[model, 0], lora=["lora", 0])}
        got = sampled(comfy, made.sample(f"{first} first", "loras" if first == "toggle" else "off").prompt)
        with_idle = sampled(comfy, expected.sample("idle, loras", "loras").prompt)
        assert torch.equal(got[f"{first} first"], with_idle["idle, loras"])

    def test_with_block_swap(self, comfy, idle):
        swap = node(
            "WanVideoBlockSwap", blocks_to_swap=20, offload_img_emb=False, offload_txt_emb=False, use_non_blocking=False,
            vace_blocks_to_swap=0, prefetch_blocks=1, block_swap_debug=False,
        )  # fmt: skip
        made = [Wrapper(block_swap_args=["swap", 0]).toggle("off", BLOCKS).sample("swapped off", "off")]
        made.append(Wrapper(idle, block_swap_args=["swap", 0]).sample("swapped idle", "model"))
        for each in made:
            each.prompt["swap"] = swap
        got, expected = (sampled(comfy, each.prompt) for each in made)
        assert torch.equal(got["swapped off"], expected["swapped idle"])

    def test_with_a_cache_that_skips_steps(self, comfy, idle):
        cache = node(
            "WanVideoTeaCache", rel_l1_thresh=0.2, start_step=1, end_step=-1, cache_device="offload_device",
            use_coefficients=False, mode="e",
        )  # fmt: skip
        options = {"steps": 6, "cache_args": ["cache", 0]}
        prompt = Wrapper().toggle("off", BLOCKS)
        prompt.sample("cached whole", "model", **options).sample("cached off", "off", **options)
        other = Wrapper(idle).sample("cached idle", "model", **options)
        prompt.prompt["cache"] = other.prompt["cache"] = cache
        got = sampled(comfy, prompt.prompt)
        assert torch.equal(got["cached off"], sampled(comfy, other.prompt)["cached idle"])
        assert not torch.equal(got["cached off"], got["cached whole"])

    def test_a_cancel_in_the_middle_leaves_the_model_whole(self, comfy):
        whole = sampled(comfy, Wrapper().sample("before", "model").prompt)["before"]
        running = comfy.queue(Wrapper().toggle("off", BLOCKS).sample("long", "off", steps=2000).prompt)
        comfy.wait_for_node(running, "sample long")
        time.sleep(1)  # The sampler loads the weights first; this is well into its 2000 steps.
        comfy.interrupt()
        with pytest.raises(Interrupted):
            comfy.wait(running)
        result = comfy.run(Wrapper().sample("after", "model").prompt)
        assert "sample after" in result.executed
        assert "model" not in result.executed
        assert torch.equal(value(comfy, "after"), whole)

    def test_an_error_in_the_middle_leaves_the_model_whole(self, comfy):
        whole = sampled(comfy, Wrapper().sample("before", "model").prompt)["before"]
        broken = Wrapper().toggle("off", BLOCKS).sample("broken", "off")
        broken.prompt["conditioning"] = node("DiffLoraZeroText", tokens=64, width=100)
        with pytest.raises(NodeFailed, match="mat1 and mat2"):
            comfy.run(broken.prompt)
        result = comfy.run(Wrapper().sample("after an error", "model").prompt)
        assert "sample after an error" in result.executed
        assert "model" not in result.executed
        assert torch.equal(value(comfy, "after an error"), whole)
