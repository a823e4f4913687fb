"""Nodes for tests only: ComfyUI loads this folder as a pack of its own beside ours."""

import hashlib
import json
import time
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import folder_paths
import torch
from safetensors.torch import save_file


class TestConditioning:
    """Stands in for the text encoder, which has 5.7 billion parameters. The same seed is the same text.

    run  changes nothing: another number makes ComfyUI run what depends on this again
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0, "max": 2**31}),
                "length": ("INT", {"default": 64, "min": 1, "max": 512}),
            },
            "optional": {"run": ("INT", {"default": 0, "max": 2**31})},
        }

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, seed, length, run=0):
        random = torch.Generator().manual_seed(seed)
        return ([[torch.randn(1, length, 4096, generator=random) * 0.2, {}]],)


class TestHash:
    """Shows the SHA-256, shape, mean and finiteness of an IMAGE, LATENT or CONDITIONING."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "look"
    CATEGORY = "test"

    def look(self, value):
        if isinstance(value, dict):
            value = value["samples"]
        elif isinstance(value, list):
            value = value[0][0]
        value = value.detach().contiguous().cpu()
        digest = hashlib.sha256(value.float().numpy().tobytes()).hexdigest()
        finite = bool(value.isfinite().all())
        facts = {"sha256": digest, "shape": list(value.shape), "mean": float(value.float().mean()), "finite": finite}
        return {"ui": {"text": [json.dumps(facts)]}}


class TestEncoder:
    """A text encoder of ComfyUI's with random weights: SD1's, the one whose tokenizer comes with ComfyUI."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self):
        from comfy import sd, sd1_clip

        class Target:
            params = {}
            clip = sd1_clip.SD1ClipModel
            tokenizer = sd1_clip.SD1Tokenizer

        encoder = sd.CLIP(Target)
        random = torch.Generator().manual_seed(0)
        for parameter in encoder.cond_stage_model.parameters():
            values = torch.randn(parameter.shape, generator=random) * 0.02
            parameter.data = values.to(parameter.device, parameter.dtype)
        return (encoder,)


class TestEmbeds:
    """The prompt or the negative prompt of WanVideoWrapper's text embeds, as CONDITIONING."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"embeds": ("WANVIDEOTEXTEMBEDS",), "kind": (["prompt_embeds", "negative_prompt_embeds"],)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "convert"
    CATEGORY = "test"

    def convert(self, embeds, kind):
        [one] = embeds[kind]
        return ([[one[None], {}]],)


class TestShow:
    """Shows a value that JSON can hold, such as the wrapper's list of LoRAs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "look"
    CATEGORY = "test"

    def look(self, value):
        return {"ui": {"text": [json.dumps(value)]}}


class TestSaveTensor:
    """Writes an IMAGE or LATENT to the output folder as it is: `value` in a safetensors file."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",), "name": ("STRING", {"default": "value"})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "test"

    def save(self, value, name):
        if isinstance(value, dict):
            value = value["samples"]
        path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        save_file({"value": value.detach().contiguous().cpu()}, path)
        return {"ui": {"text": [str(path)]}}


class TestSaveWeights:
    """Writes the weights that a MODEL really computes with, patches and injections included.

    For each linear layer: `<name>.weight`, read off the layer by sending the identity through it, so that a patched
    weight and one applied on the fly look the same; and `<name>.stored`, the parameter as it lies in memory.

    dtype   what the identity comes in: the layer computes in it
    unload  bytes to take off the device first, as ComfyUI does when memory is short
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": ("MODEL",), "name": ("STRING", {"default": "weights"})},
            "optional": {"dtype": ("STRING", {"default": "float32"}), "unload": ("INT", {"default": 0, "max": 2**40})},
        }

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "test"

    def save(self, model, name, dtype="float32", unload=0):
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        if unload:
            model.partially_unload(model.offload_device, unload)
        weights = {}
        with torch.no_grad():
            for module, layer in model.model.diffusion_model.named_modules():
                weight = getattr(layer, "weight", None)
                if isinstance(weight, torch.Tensor) and weight.ndim == 2:
                    identity = torch.eye(weight.shape[1], dtype=getattr(torch, dtype), device=weight.device)
                    zero = layer(torch.zeros_like(identity[:1]))
                    weights[f"{module}.weight"] = (layer(identity) - zero).T.contiguous().cpu()
                    stored = weight.dequantize() if hasattr(weight, "_qdata") else weight
                    weights[f"{module}.stored"] = stored.detach().clone().cpu()
        if unload:
            comfy.model_management.unload_all_models()
        path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        save_file(weights, path)
        return {"ui": {"text": [str(path)]}}


class TestSaveParameters:
    """Writes all parameters of a MODEL as they lie in memory while it is loaded: biases, norms and modulation, too."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "name": ("STRING", {"default": "parameters"})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "test"

    def save(self, model, name):
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        parameters = model.model.diffusion_model.named_parameters()
        path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        save_file({key: value.detach().clone().cpu() for key, value in parameters}, path)
        return {"ui": {"text": [str(path)]}}


class TestSaveWrapperWeights:
    """Writes all parameters of a WANVIDEOMODEL; of linear layers that take LoRAs on the fly, what they compute with.

    after  what has to run before, such as a sampler: only that puts LoRAs on the layers
    """

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"model": ("WANVIDEOMODEL",), "name": ("STRING", {"default": "parameters"})}
        return {"required": inputs, "optional": {"after": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "test"

    def save(self, model, name, after=None):
        transformer = model.model.diffusion_model
        weights = dict(transformer.named_parameters())
        for layer_name, layer in transformer.named_modules():
            if hasattr(layer, "_get_weight_with_lora"):
                weights[f"{layer_name}.weight"] = layer._get_weight_with_lora(layer.weight)
        path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        save_file({key: value.detach().clone().contiguous().cpu() for key, value in weights.items()}, path)
        return {"ui": {"text": [str(path)]}}


class TestShapes:
    """A Wan2.1 T2V of any size whose weights have shapes and nothing in them: nodes that load it are measured, not it."""

    @classmethod
    def INPUT_TYPES(cls):
        sizes = {"dim": 5120, "ffn": 13824, "blocks": 40}
        return {"required": {name: ("INT", {"default": size, "max": 2**20}) for name, size in sizes.items()}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, dim, ffn, blocks):
        config = comfy.supported_models.WAN21_T2V(
            {
                "image_model": "wan2.1",
                "model_type": "t2v",
                "dim": dim,
                "ffn_dim": ffn,
                "num_layers": blocks,
                "out_dim": 16,
                "num_heads": dim // 128,
                "patch_size": (1, 2, 2),
                "freq_dim": 256,
                "window_size": (-1, -1),
                "qk_norm": True,
                "cross_attn_norm": True,
                "eps": 1e-6,
                "in_dim": 16,
            }
        )
        config.set_inference_dtype(torch.bfloat16, None)
        model = config.get_model({}, "", device=torch.device("meta"))
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),)


class TestKeep:
    """Takes any value and does nothing with it, so that what comes before it runs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "keep"
    CATEGORY = "test"

    def keep(self, value):
        return {"ui": {"text": [type(value).__name__]}}


class TestText:
    """Gives a text to any input, also to one that is not a text: what a list of options or a widget would not let by."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "test"

    def give(self, text):
        return (text,)


class TestJson:
    """Gives any input the value that a JSON text stands for: a list of strengths, as the wrapper's own nodes make."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "null"})}}

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "test"

    def give(self, text):
        return (json.loads(text),)


class TestRecord:
    """Hands a MODEL on, and counts one more file with its weights in output/<name>/: 0.safetensors, 1.safetensors, …"""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "name": ("STRING", {"default": "recorded"})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "record"
    CATEGORY = "test"

    def record(self, model, name):
        folder = Path(folder_paths.get_output_directory()) / name
        folder.mkdir(exist_ok=True)
        TestSaveWeights().save(model, f"{name}/{len(list(folder.iterdir()))}")
        return (model,)


class TestBreak:
    """Hands pictures on, unless output/break.txt names this number: then it raises, or waits to be cancelled or killed."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "number": ("FLOAT", {"default": 0.0, "min": -100, "max": 100})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "hand_on"
    CATEGORY = "test"

    def hand_on(self, images, number):
        file = Path(folder_paths.get_output_directory()) / "break.txt"
        how, _, at = file.read_text().partition(" ") if file.exists() else ("", "", "nan")
        if float(at) == number:
            if how == "raise":
                raise RuntimeError(f"broken at {number}")
            for _ in range(600):
                comfy.model_management.throw_exception_if_processing_interrupted()
                time.sleep(0.1)
        return (images,)


class TestSpoil:
    """Hands pictures on, but at the number in output/spoil.txt spoils them: "nan 1.0", "black 1.0", "frames 1.0", "size 1.0".

    as_it_is  "grey" for one channel and "alpha" for four, at every number
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "number": ("FLOAT", {"default": 0.0, "min": -100, "max": 100})},
            "optional": {"as_it_is": ("STRING", {"default": ""})},
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "hand_on"
    CATEGORY = "test"

    def hand_on(self, images, number, as_it_is=""):
        file = Path(folder_paths.get_output_directory()) / "spoil.txt"
        how, _, at = file.read_text().partition(" ") if file.exists() else ("", "", "nan")
        if float(at) == number:
            if how == "nan":
                images = images.clone()
                images[-1, 3, 5] = float("nan")
            images = images * 0 if how == "black" else images
            images = torch.cat([images, images]) if how == "frames" else images
            images = images[:, ::2] if how == "size" else images
        if as_it_is == "grey":
            images = images[..., :1]
        if as_it_is == "alpha":
            images = torch.cat([images, torch.full_like(images[..., :1], 0.5)], -1)
        return (images,)


class TestDistributedCollector:
    """Named like a node of ComfyUI-Distributed, which merges what other machines send."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "hand_on"
    CATEGORY = "test"

    def hand_on(self, images):
        return (images,)


class TestMood:
    """Hands pictures on, and says that it would give others whenever output/mood.txt is another text."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "hand_on"
    CATEGORY = "test"

    @classmethod
    def IS_CHANGED(cls, **_):
        return (Path(folder_paths.get_output_directory()) / "mood.txt").read_text()

    def hand_on(self, images):
        return (images,)


class TestAlwaysOther:
    """Hands pictures on, and says that it would give others each time."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "hand_on"
    CATEGORY = "test"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def hand_on(self, images):
        return (images,)


class TestTwoSizes:
    """Hands pictures on in two batches, of which the second is cut to half its width."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "hand_on"
    CATEGORY = "test"

    def hand_on(self, images):
        return ([images, images[:, :, : images.shape[2] // 2]],)


class TestInt8:
    """The same model with the second feed-forward layer of every block in ComfyUI's INT8 layout, where it has one."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "quantise"
    CATEGORY = "test"

    def quantise(self, model):
        from comfy.quant_ops import QuantizedTensor

        for block in model.model.diffusion_model.blocks:
            layer = block.ffn[2]
            weight = QuantizedTensor.from_float(layer.weight.data.clone(), "TensorWiseINT8Layout")
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return (model,)


class TestSigmas:
    """A schedule from its noise levels as a JSON list."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "[1, 0]"})}}

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, text):
        return (torch.tensor(json.loads(text)),)


class TestMasks:
    """A mask of many pictures, each brighter than the one before."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 9, "min": 1, "max": 1000})}}

    RETURN_TYPES = ("MASK",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, count):
        return ((torch.arange(count) / count)[:, None, None].expand(count, 64, 64).clone(),)


class TestClip:
    """Frames that say what they are: the left half's grey is 20 + 10 · its number, the right half's 128 + 20 · strength."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "strength": ("FLOAT", {"default": 0.0, "min": -10, "max": 10}),
                "frames": ("INT", {"default": 12, "min": 1, "max": 1000}),
                "width": ("INT", {"default": 96, "min": 8, "max": 4096}),
                "height": ("INT", {"default": 64, "min": 8, "max": 4096}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self, strength, frames, width, height):
        clip = torch.full((frames, height, width, 3), (128 + 20 * strength) / 255)
        clip[:, :, : width // 2] = ((20 + 10 * torch.arange(frames)) % 256 / 255)[:, None, None, None]
        return (clip,)


NODE_CLASS_MAPPINGS = {
    "TestDistributedCollector": TestDistributedCollector,
    "TestSpoil": TestSpoil,
    "TestClip": TestClip,
    "TestBreak": TestBreak,
    "TestMasks": TestMasks,
    "TestRecord": TestRecord,
    "TestConditioning": TestConditioning,
    "TestEmbeds": TestEmbeds,
    "TestEncoder": TestEncoder,
    "TestAlwaysOther": TestAlwaysOther,
    "TestMood": TestMood,
    "TestTwoSizes": TestTwoSizes,
    "TestHash": TestHash,
    "TestInt8": TestInt8,
    "TestJson": TestJson,
    "TestKeep": TestKeep,
    "TestSaveParameters": TestSaveParameters,
    "TestSaveTensor": TestSaveTensor,
    "TestSaveWeights": TestSaveWeights,
    "TestSaveWrapperWeights": TestSaveWrapperWeights,
    "TestShapes": TestShapes,
    "TestShow": TestShow,
    "TestSigmas": TestSigmas,
    "TestText": TestText,
}
