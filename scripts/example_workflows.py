"""The example workflows, in words: nodes by name, their widgets by name, and how they are laid out.

`python -m scripts.build_workflows` has ComfyUI's own page build and save them into workflows/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "workflows"


@dataclass(frozen=True)
class Node:
    """values: widgets by name. inputs: "node" or "node:output number". size: width, and height if it is not its own.

    folded: only its title is shown. For what hardly anybody changes, where all nodes together would not fit one page.
    """

    name: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    title: str | None = None
    size: tuple[int, int | None] = (340, None)
    folded: bool = False


@dataclass(frozen=True)
class Group:
    """A frame with a title. columns: from left to right, each from top to bottom."""

    title: str
    columns: list[list[Node]]
    color: str


@dataclass(frozen=True)
class Workflow:
    """name: at most 30 characters, beyond which its card is cut off.

    stacks: from left to right, each a pile of groups from top to bottom; `layout` breaks them into rows.
    """

    name: str
    note: str
    stacks: list[list[Group]]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    @property
    def number(self) -> str:
        return self.name.split(" ")[0]

    def nodes(self) -> Iterator[Node]:
        for stack in self.stacks:
            for group in stack:
                for column in group.columns:
                    yield from column

    def prompt(self) -> dict[str, dict[str, Any]]:
        """In API format, ids being names. What is not said stays at the node's default, and has to be filled in."""
        return {
            node.name: {
                "class_type": node.type,
                "inputs": node.values | {name: link(source) for name, source in node.inputs.items()},
            }
            for node in self.nodes()
        }


def link(source: str) -> list[Any]:
    """A node's input in API format: ["node", output number]."""
    name, _, output = source.partition(":")
    return [name, int(output or 0)]


def filled(prompt: dict[str, dict[str, Any]], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """With the defaults that the page would have put in; object_info as the server gives it."""
    for node in prompt.values():
        for name, (kind, *rest) in object_info[node["class_type"]]["input"].get("required", {}).items():
            options = rest[0] if rest else {}
            if name not in node["inputs"]:
                node["inputs"][name] = options.get("default", kind[0] if isinstance(kind, list) else None)
    return prompt


DENSE, SPARSE = "dense_scenes.safetensors", "sparse_scenes.safetensors"
STYLE = "studio_ghibli_wan14b_t2v_v01.safetensors"
DISTILL = "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank128_bf16.safetensors"
WRAPPER_TWINS = {
    "high": "Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ.safetensors",
    "low": "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors",
}

KIJAI = "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main"
KIJAI_FP8 = "https://huggingface.co/Kijai/WanVideo_comfy_fp8_scaled/resolve/main"
WAN22 = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/diffusion_models"
WAN21 = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
# file -> folder below models/, and where to get it: ComfyUI's page offers to download what is missing.
# The style LoRA has no address that needs no account: the workflows' notes name its page.
DOWNLOADS = {
    DISTILL: ("loras", f"{KIJAI}/Lightx2v/{DISTILL}"),
    "Wan2_1-T2V-14B_fp8_e5m2.safetensors": ("diffusion_models", f"{KIJAI}/Wan2_1-T2V-14B_fp8_e5m2.safetensors"),
    "umt5-xxl-enc-bf16.safetensors": ("text_encoders", f"{KIJAI}/umt5-xxl-enc-bf16.safetensors"),
    "Wan2_1_VAE_bf16.safetensors": ("vae", f"{KIJAI}/Wan2_1_VAE_bf16.safetensors"),
    "wan2.1_t2v_14B_fp8_e4m3fn.safetensors": (
        "diffusion_models",
        f"{WAN21}/diffusion_models/wan2.1_t2v_14B_fp8_e4m3fn.safetensors",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        "text_encoders",
        f"{WAN21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    **{file: ("diffusion_models", f"{KIJAI_FP8}/T2V/{file}") for file in WRAPPER_TWINS.values()},
    **{
        f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors": (
            "diffusion_models",
            f"{WAN22}/wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors",
        )
        for noise in ("high", "low")
    },
    "wan_2.1_vae.safetensors": ("vae", f"{WAN21}/vae/wan_2.1_vae.safetensors"),
}


PAGES = {STYLE: ("loras", "https://civitai.com/models/1404755")} | {
    file: (folder, address.replace("/resolve/", "/blob/")) for file, (folder, address) in DOWNLOADS.items()
}


def files_needed(*files: str, yours: str = "") -> str:
    """A table for a note: files with links to their pages, and their folders. Two columns: a third would be cut off on the canvas."""
    rows = ["| File | Folder |", "|---|---|"]
    rows += [f"| [{file.removesuffix('.safetensors')}]({PAGES[file][1]}) | {PAGES[file][0]} |" for file in files]
    return "\n".join([*rows, *([f"| {yours} | loras |"] if yours else []), ""])


def with_downloads(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved workflow whose nodes say where to get the files they name."""
    for node in saved["nodes"]:
        values = node.get("widgets_values") or []
        files = [value for value in values if value in DOWNLOADS] if isinstance(values, list) else []
        if files:
            node["properties"]["models"] = [
                {"name": file, "url": DOWNLOADS[file][1], "directory": DOWNLOADS[file][0]} for file in files
            ]
    return saved


PROMPT = (
    "Studio Ghibli style. A street market in an old harbour town on a summer morning, a girl with a red umbrella walks "
    "towards the camera, soft light, slow camera movement."
)
# Wan's own negative prompt, and what keeps 3D renderings away.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走, 3D, MMD, MikuMikuDance, SFM, Source Filmmaker, Blender, Unity, Unreal, CGI, bad quality"
)
SEED = 1234

GREEN, BLUE, GOLD, PLUM, GREY = "#4f7a4f", "#4c72aa", "#8a6d3b", "#83629a", "#707070"


def pair(dense: str = DENSE, sparse: str = SPARSE) -> list[Node]:
    return [
        Node("dense", "DiffLoraLoad", {"lora_name": dense}, title="LoRA with more of it"),
        Node("sparse", "DiffLoraLoad", {"lora_name": sparse}, title="LoRA with less of it"),
    ]


def slider_group(title: str, dense: str = DENSE, sparse: str = SPARSE) -> Group:
    """From the pair to the slider LoRA, under the name "rank"."""
    return Group(
        title,
        [
            [
                *pair(dense, sparse),
                Node(
                    "subtract",
                    "DiffLoraSubtract",
                    {"weight_a": 1.0, "weight_b": 1.0, "unmatched": "keep"},
                    {"a": "dense", "b": "sparse"},
                ),
            ],
            [Node("select", "DiffLoraSelectBlocks", {"selection": "attn"}, {"lora": "subtract"})],
            [Node("rank", "DiffLoraRerank", {"rule": "rank", "rank": 4}, {"lora": "select"})],
        ],
        GREEN,
    )


def lora(name: str, file: str, strength: float, title: str, **inputs: str) -> Node:
    values = {"lora": file, "strength": strength, "low_mem_load": False, "merge_loras": False}
    return Node(name, "WanVideoLoraSelect", values, inputs, title)


SAVE_VIDEO = Node(
    "save",
    "SaveVideo",
    {"filename_prefix": "slider", "format": "auto", "codec": "auto"},
    {"video": "video"},
    size=(340, None),
)


def native_video(samples: str) -> Group:
    return Group(
        "Video",
        [
            [
                Node("vae", "VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
                Node("decode", "VAEDecode", {}, {"samples": samples, "vae": "vae"}),
                Node("video", "CreateVideo", {"fps": 16.0}, {"images": "decode"}),
            ],
            [SAVE_VIDEO],
        ],
        GREY,
    )


def wrapper_video(samples: str) -> Group:
    return Group(
        "Video",
        [
            [
                Node("vae", "WanVideoVAELoader", {"model_name": "Wan2_1_VAE_bf16.safetensors", "precision": "bf16"}),
                Node("decode", "WanVideoDecode", {"enable_vae_tiling": False}, {"vae": "vae", "samples": samples}),
                Node("video", "CreateVideo", {"fps": 16.0}, {"images": "decode"}),
            ],
            [SAVE_VIDEO],
        ],
        GREY,
    )


def wrapper_text(nag: bool) -> Group:
    encoder = Node(
        "t5",
        "LoadWanVideoT5TextEncoder",
        {"model_name": "umt5-xxl-enc-bf16.safetensors", "precision": "bf16", "load_device": "offload_device"},
    )
    if not nag:
        prompt = Node(
            "text",
            "WanVideoTextEncode",
            {"positive_prompt": PROMPT, "negative_prompt": NEGATIVE, "force_offload": True},
            {"t5": "t5"},
            "Prompt and negative prompt",
            (440, 420),
        )
        return Group("Text", [[encoder], [prompt]], GOLD)
    prompt = Node(
        "prompt",
        "WanVideoTextEncode",
        {"positive_prompt": PROMPT, "negative_prompt": "", "force_offload": True},
        {"t5": "t5"},
        "Prompt",
        (400, 320),
    )
    negative = Node(
        "negative",
        "WanVideoTextEncode",
        {"positive_prompt": NEGATIVE, "negative_prompt": "", "force_offload": True},
        {"t5": "t5"},
        "Negative (top field)",
        (400, 320),
    )
    guidance = Node(
        "text",
        "WanVideoApplyNAG",
        {"nag_scale": 11.0, "nag_tau": 2.5, "nag_alpha": 0.25},
        {"original_text_embeds": "prompt", "nag_text_embeds": "negative"},
    )
    return Group("Text, with a negative prompt that works at CFG 1", [[encoder, guidance], [prompt, negative]], GOLD)


SWAP = Node(
    "swap",
    "WanVideoBlockSwap",
    {"blocks_to_swap": 20, "offload_img_emb": False, "offload_txt_emb": False, "vace_blocks_to_swap": 0},
)
FRAMES = Node("frames", "WanVideoEmptyEmbeds", {"width": 640, "height": 480, "num_frames": 81})


def wrapper_model(**values: Any) -> dict[str, Any]:
    return {
        "model": "Wan2_1-T2V-14B_fp8_e5m2.safetensors",
        "base_precision": "bf16",
        "quantization": "disabled",
        "load_device": "offload_device",
    } | values


FILES_FOR_WRAPPER = """
**Files** (in ComfyUI's **models** folder)

""" + files_needed(
    "Wan2_1-T2V-14B_fp8_e5m2.safetensors",
    "umt5-xxl-enc-bf16.safetensors",
    "Wan2_1_VAE_bf16.safetensors",
    DISTILL,
    STYLE,
    yours="your two LoRAs, trained alike, one with more, one with less",
)


def slider(prev_lora: str) -> Node:
    values = {"strength": 2.0, "merge_loras": False, "low_mem_load": False}
    return Node("slider", "DiffLoraSliderWanVideo", values, {"lora": "rank", "prev_lora": prev_lora})


SET_LORAS = Node("loras", "WanVideoSetLoRAs", {}, {"model": "model", "lora": "slider"})


def wrapper_sampler(steps: int, cfg: float, **inputs: str) -> Node:
    values = {"steps": steps, "cfg": cfg, "shift": 5.0, "seed": SEED, "force_offload": True, "scheduler": "unipc"}
    return Node(
        "sampler",
        "WanVideoSampler",
        values | {"riflex_freq_index": 0},
        {"model": "loras", "image_embeds": "frames", "text_embeds": "text", **inputs},
    )


FAST = Workflow(
    "1 Slider, wrapper, 6 steps",
    """# A slider on Wan2.1-T2V-14B, in 6 steps

1. Choose your two LoRAs on the left.
2. Press Run.
3. Move **strength** on *LoRA Slider (WanVideoWrapper)* and run again. Nothing is saved or loaded again. Most sliders
work well from −3 to +3, with a long prompt up to ±4. 0 is the model without the slider.
"""
    + FILES_FOR_WRAPPER
    + """
**On a 3090** (24 GB): as it is, about a minute a clip. With less VRAM, swap more blocks; with more, fewer. No style LoRA?
Set its strength to 0. Eight steps: step-distill at 0.9.

**Keep merge_loras off on every LoRA.** A model into which one was merged ignores all that are set later.

**The slider alone:** leave both prompts empty. It was trained that way.
""",
    [
        [slider_group("1. The pair becomes a slider")],
        [
            Group(
                "2. Model",
                [
                    [SWAP],
                    [
                        Node(
                            "model",
                            "WanVideoModelLoader",
                            wrapper_model(attention_mode="sdpa"),
                            {"block_swap_args": "swap"},
                        )
                    ],
                ],
                BLUE,
            ),
            Group(
                "3. LoRAs, none of them merged",
                [
                    [
                        lora("style", STYLE, 1.0, "Style LoRA"),
                        lora("distill", DISTILL, 1.0, "Step-distill LoRA", prev_lora="style"),
                    ],
                    [slider("distill")],
                ],
                PLUM,
            ),
        ],
        [wrapper_text(nag=True)],
        [Group("4. Sampling", [[SET_LORAS, FRAMES], [wrapper_sampler(6, 1.0)]], BLUE)],
        [wrapper_video("sampler")],
    ],
)

FULL = Workflow(
    "2 Slider, wrapper, 30 steps",
    """# A slider on Wan2.1-T2V-14B, in full

As workflow 1, but without the step-distill LoRA: 30 steps at CFG 5, made faster by TeaCache, torch.compile and SageAttention,
and better by Enhance-A-Video, skip-layer guidance and CFG-Zero-Star.

1. Choose your two LoRAs on the left.
2. Press Run. The first run compiles for a while.
3. Move **strength** on *LoRA Slider (WanVideoWrapper)* and run again.
"""
    + """
The files are those of workflow 1, without the step-distill LoRA.

**On a 3090** (24 GB): as it is, about five minutes a clip. torch.compile needs Triton. On RTX 30xx and older cards it
usually cannot compile fp8_e4m3fn: use a model in fp8_e5m2, bf16 or GGUF there. Without Triton: delete *Torch Compile Settings*. Without SageAttention: set attention_mode to sdpa.

**Keep merge_loras off on every LoRA.** A model into which one was merged ignores all that are set later.

**TeaCache** skips steps that change little, and not the same steps at every strength. Disconnect it when you compare
strengths closely.
""",
    [
        [slider_group("1. The pair becomes a slider")],
        [
            Group(
                "2. Model",
                [
                    [
                        SWAP,
                        Node(
                            "compile",
                            "WanVideoTorchCompileSettings",
                            {
                                "backend": "inductor",
                                "fullgraph": False,
                                "mode": "default",
                                "dynamic": False,
                                "dynamo_cache_size_limit": 64,
                                "compile_transformer_blocks_only": True,
                            },
                        ),
                    ],
                    [
                        Node(
                            "model",
                            "WanVideoModelLoader",
                            wrapper_model(attention_mode="sageattn"),
                            {"compile_args": "compile", "block_swap_args": "swap"},
                        )
                    ],
                ],
                BLUE,
            ),
            Group(
                "3. LoRAs, none of them merged",
                [[lora("style", STYLE, 1.0, "Style LoRA")], [slider("style")]],
                PLUM,
            ),
        ],
        [
            wrapper_text(nag=False),
            Group(
                "Better and faster",
                [
                    [
                        Node(
                            "feta", "WanVideoEnhanceAVideo", {"weight": 2.0, "start_percent": 0.0, "end_percent": 1.0}
                        ),
                        Node(
                            "teacache",
                            "WanVideoTeaCache",
                            {
                                "rel_l1_thresh": 0.2,
                                "start_step": 6,
                                "end_step": -1,
                                "cache_device": "offload_device",
                                "use_coefficients": True,
                            },
                        ),
                    ],
                    [
                        Node("slg", "WanVideoSLG", {"blocks": "9", "start_percent": 0.2, "end_percent": 0.7}),
                        # Not use_zero_init: with it, the sampler of 1.4.7 stops with an error.
                        Node(
                            "experimental",
                            "WanVideoExperimentalArgs",
                            {"cfg_zero_star": True, "use_zero_init": False},
                            title="CFG-Zero-Star",
                        ),
                    ],
                ],
                GREY,
            ),
        ],
        [
            Group(
                "4. Sampling",
                [
                    [SET_LORAS, FRAMES],
                    [
                        wrapper_sampler(
                            30,
                            5.0,
                            feta_args="feta",
                            cache_args="teacache",
                            slg_args="slg",
                            experimental_args="experimental",
                        ),
                    ],
                ],
                BLUE,
            )
        ],
        [wrapper_video("sampler")],
    ],
)


def core_lora(name: str, file: str, strength: float, title: str, model: str) -> Node:
    return Node(name, "LoraLoaderModelOnly", {"lora_name": file, "strength_model": strength}, {"model": model}, title)


NATIVE = Workflow(
    "3 Slider, no other packs",
    """# A slider on Wan2.1-T2V-14B, without other packs

1. Choose your two LoRAs on the left.
2. Press Run.
3. Move **strength** on *LoRA Slider (model)* and run again. Most sliders work well from −3 to +3. 0 is
the model without the slider.

**Files** (in ComfyUI's **models** folder)

"""
    + files_needed(
        "wan2.1_t2v_14B_fp8_e4m3fn.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "wan_2.1_vae.safetensors",
        DISTILL,
        STYLE,
        yours="your two LoRAs, trained alike, one with more, one with less",
    )
    + """
**On a 3090** (24 GB): ComfyUI swaps parts of the model by itself. If it runs out of memory, use fewer frames or a smaller picture.
No style LoRA? Switch its row in *LoRA Slider Rack* off; **Add LoRA** puts others on the model. Eight steps: step-distill at 0.9.

At CFG 1 the negative prompt does nothing. To use it, set CFG to 5, steps to 30 and step-distill to 0.

**The slider alone:** connect *Empty Text* in place of both prompts. The pair was trained with it.
""",
    [
        [
            slider_group("1. The pair becomes a slider"),
        ],
        [
            Group(
                "2. Model, style and step-distillation",
                [
                    [
                        Node(
                            "unet",
                            "UNETLoader",
                            {"unet_name": "wan2.1_t2v_14B_fp8_e4m3fn.safetensors", "weight_dtype": "default"},
                        ),
                        Node(
                            "style", "DiffLoraSliderRack", {"rows": f"1 {STYLE}", "apply": "patch"}, {"model": "unet"}
                        ),
                        core_lora("distill", DISTILL, 1.0, "Step-distill LoRA", "style"),
                    ],
                ],
                BLUE,
            ),
        ],
        [
            Group(
                "3. The slider on the model",
                [
                    [
                        Node(
                            "slider",
                            "DiffLoraSliderModel",
                            {"strength": 2.0, "apply": "auto"},
                            {"model": "distill", "lora": "rank"},
                        )
                    ]
                ],
                PLUM,
            ),
        ],
        [
            Group(
                "Text",
                [
                    [
                        Node(
                            "clip", "CLIPLoader", {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"}
                        ),
                        Node("empty", "DiffLoraEmptyText", {}, {"clip": "clip"}, "Empty Text: slider alone"),
                    ],
                    [
                        Node("positive", "CLIPTextEncode", {"text": PROMPT}, {"clip": "clip"}, "Prompt", (400, 220)),
                        Node(
                            "negative",
                            "CLIPTextEncode",
                            {"text": NEGATIVE},
                            {"clip": "clip"},
                            "Negative prompt",
                            (400, 220),
                        ),
                    ],
                ],
                GOLD,
            ),
        ],
        [
            Group(
                "4. Sampling",
                [
                    [
                        Node("shift", "ModelSamplingSD3", {"shift": 5.0}, {"model": "slider"}),
                        Node(
                            "frames",
                            "EmptyHunyuanLatentVideo",
                            {"width": 640, "height": 480, "length": 81, "batch_size": 1},
                        ),
                    ],
                    [
                        Node(
                            "sampler",
                            "KSampler",
                            {
                                "seed": SEED,
                                "steps": 6,
                                "cfg": 1.0,
                                "sampler_name": "uni_pc",
                                "scheduler": "simple",
                                "denoise": 1.0,
                            },
                            {
                                "model": "shift",
                                "positive": "positive",
                                "negative": "negative",
                                "latent_image": "frames",
                            },
                        ),
                    ],
                ],
                BLUE,
            )
        ],
        [native_video("sampler")],
    ],
)

EXPLORE = Workflow(
    "4 Explore a pair, save slider",
    """# Look into a pair, and save a slider

Needs no model: only your two LoRAs, in **models/loras**.

1. Choose the two LoRAs and press Run. **Analyze Pair** shows, block by block, how large each change is, how far the two
agree (the cosine) and how much of them cancels.
2. Look where the difference is large and the pair agrees. Pick those blocks in **Select Blocks**: paint them, or write
**blocks 10-25 & attn**.
3. Move the **rank** in the spectrum: use the smallest that keeps the energy you want. Rank 4 is a good start.
4. **Save LoRA** writes it where every LoRA list finds it.

**A good pair** has a cosine of 0.5 to 0.99 in most modules. Near 0, the two were trained too differently. Near 1, they
are nearly the same, and the difference is mostly noise.

To render it on the model, open workflow 1, 2 or 3.
""",
    [
        [Group("1. The pair", [pair()], GREEN)],
        [
            Group(
                "2. The slider",
                [
                    [
                        Node(
                            "subtract",
                            "DiffLoraSubtract",
                            {"weight_a": 1.0, "weight_b": 1.0, "unmatched": "keep"},
                            {"a": "dense", "b": "sparse"},
                        )
                    ],
                    [Node("select", "DiffLoraSelectBlocks", {"selection": "attn"}, {"lora": "subtract"})],
                    [Node("rank", "DiffLoraRerank", {"rule": "rank", "rank": 4}, {"lora": "select"})],
                    [Node("save", "DiffLoraSave", {"filename_prefix": "slider", "dtype": "float32"}, {"lora": "rank"})],
                ],
                PLUM,
            ),
            Group(
                "3. What is in the pair",
                [
                    [
                        Node(
                            "analyze",
                            "DiffLoraAnalyze",
                            {"rank": 4, "show": "difference"},
                            {"a": "dense", "b": "sparse"},
                            size=(620, None),
                        )
                    ]
                ],
                BLUE,
            ),
        ],
    ],
)

SWEEP = Node("sweep", "DiffLoraStrengthSweep", {"start": -3.0, "stop": 3.0, "count": 7, "include_zero": True})


def swept(title: str, decode: list[Node]) -> list[list[Group]]:
    """From the decoded pictures to the grid, its video, and the response."""
    return [
        [
            Group(
                title,
                [
                    decode,
                    [
                        Node(
                            "grid",
                            "DiffLoraSweepGrid",
                            {"arrange": "grid", "cell_size": 384, "fps": 16.0, "baseline": 0.0},
                            {"images": "decode"},
                            size=(460, None),
                        )
                    ],
                ],
                GREY,
            )
        ],
        [
            Group(
                "How far can it go? Saved with that range",
                [
                    [
                        Node(
                            "response",
                            "DiffLoraSliderResponse",
                            {
                                "target": "edges",
                                "colour_limit": 5.0,
                                "brightness_limit": 10.0,
                                "saturation_limit": 10.0,
                            },
                            {"sweep": "grid:1"},
                            size=(480, None),
                        )
                    ],
                    [
                        Node(
                            "keep",
                            "DiffLoraSave",
                            {"filename_prefix": "slider", "dtype": "float32", "if_exists": "next number"},
                            {"lora": "rank", "recommended_strength": "response:5"},
                        )
                    ],
                ],
                PLUM,
            ),
        ],
        [
            Group(
                "Video of the grid",
                [[Node("video", "CreateVideo", {"fps": 16.0}, {"images": "grid"})], [SAVE_VIDEO]],
                GREY,
            ),
        ],
    ]


def with_sweep(stacks: list[list[Group]]) -> list[list[Group]]:
    """The same groups, with a Strength Sweep in front of the slider."""

    def changed(group: Group) -> Group:
        columns = []
        for column in group.columns:
            for node in column:
                if node.name == "slider":
                    values = {name: value for name, value in node.values.items() if name != "strength"}
                    swept_one = replace(node, values=values, inputs=node.inputs | {"strength": "sweep"})
                    column = [each for other in column for each in ((SWEEP, swept_one) if other is node else (other,))]
            columns.append(column)
        return replace(group, columns=columns)

    return [[changed(group) for group in stack] for stack in stacks]


def regrouped(stacks: list[list[Group]], groups: list[tuple[str, list[list[str]], str]]) -> list[list[Group]]:
    """Some of the nodes, by their names, in other groups: title, columns, colour."""
    nodes = {node.name: node for stack in stacks for group in stack for column in group.columns for node in column}
    return [
        [Group(title, [[nodes[name] for name in column] for column in columns], color)]
        for title, columns, color in groups
    ]


def smaller(
    stacks: list[list[Group]], sizes: dict[str, tuple[int, int | None]], folded: tuple[str, ...] = ()
) -> list[list[Group]]:
    """The same, some nodes in another size, and some folded."""

    def changed(node: Node) -> Node:
        return replace(node, size=sizes.get(node.name, node.size), folded=node.name in folded)

    return [
        [replace(group, columns=[[changed(node) for node in column] for column in group.columns]) for group in stack]
        for stack in stacks
    ]


HOW_TO_SWEEP = """
1. Choose your two LoRAs on the left.
2. Press Run. Every strength is rendered, one after the other; **Sweep Grid** shows what is done.
3. Look: choose strengths below the picture, press **Wipe** or **Difference**, try **Blind**.
4. **Sweep Response** shows how the pictures follow the strength, and how far the slider can go. For a range that you can
trust, sweep three prompts or seeds, and wire all three grids into it.
5. **Save LoRA** writes the slider with that range. *Load LoRA (Differential)* and the sliders show it from then on.

If you add a strength, only that one is rendered. After an error, a Cancel or a restart, only what is missing.
"""

SWEEP_WRAPPER = Workflow(
    "6 Sweep of strengths, wrapper",
    """# Which strength, and how far can I go?

Seven strengths on Wan2.1-T2V-14B in 6 steps each: about seven minutes on a 3090 (24 GB). The model is loaded once.
"""
    + HOW_TO_SWEEP
    + """
**Save…** below the picture keeps a clip, or all of them side by side, as a video.

The files are those of workflow 1.

**Keep merge_loras off on every LoRA**, or every strength looks the same.
""",
    # In other groups than workflow 1, and without the video of the grid: so they fit one page.
    smaller(
        regrouped(
            [
                *with_sweep(FAST.stacks[:-1]),
                *swept(
                    "5. All strengths",
                    [
                        Node(
                            "vae",
                            "WanVideoVAELoader",
                            {"model_name": "Wan2_1_VAE_bf16.safetensors", "precision": "bf16"},
                        ),
                        Node(
                            "decode",
                            "WanVideoDecode",
                            {"enable_vae_tiling": False},
                            {"vae": "vae", "samples": "sampler"},
                        ),
                    ],
                ),
            ],
            [
                ("1. The pair becomes a slider", [["dense", "sparse", "subtract"], ["select"], ["rank"]], GREEN),
                ("2. Model", [["swap"], ["model"]], BLUE),
                ("3. LoRAs, none of them merged", [["style", "distill"], ["sweep", "loras"], ["slider"]], PLUM),
                (
                    "Text, with a negative prompt that works at CFG 1",
                    [["t5", "text"], ["prompt", "negative"]],
                    GOLD,
                ),
                ("4. Sampling", [["frames", "sampler"]], BLUE),
                (
                    "5. All strengths, and how far it can go",
                    [["vae", "decode", "keep"], ["grid"], ["response"]],
                    PLUM,
                ),
            ],
        ),
        {"prompt": (340, 290), "negative": (340, 290), "grid": (400, None)},
        folded=("decode",),
    ),
)

SWEEP_NATIVE = Workflow(
    "7 Sweep, no other packs",
    """# Which strength, and how far can I go?

Seven strengths on Wan2.1-T2V-14B in 6 steps each, without other packs. The model is loaded once.
"""
    + HOW_TO_SWEEP
    + """
The files are those of workflow 3.
""",
    [
        *with_sweep(NATIVE.stacks[:-1]),
        *swept(
            "5. All strengths",
            [
                Node("vae", "VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
                Node("decode", "VAEDecode", {}, {"samples": "sampler", "vae": "vae"}),
            ],
        ),
    ],
)

DEMO_PAIR = slider_group(
    "2. The pair becomes a slider", "difflora_demo_dense.safetensors", "difflora_demo_sparse.safetensors"
)
DEMO_SAVE = Node(
    "keep",
    "DiffLoraSave",
    {"filename_prefix": "difflora_demo_slider", "dtype": "float32", "dialect": "native", "if_exists": "overwrite"},
    {"lora": "rank"},
)

DEMO_MODEL = Group(
    "1. A tiny Wan2.1",
    [
        [Node("unet", "UNETLoader", {"unet_name": "difflora_demo_wan.safetensors", "weight_dtype": "default"})],
        [Node("shift", "ModelSamplingSD3", {"shift": 3.0}, {"model": "unet"})],
    ],
    BLUE,
)

DEMO = Workflow(
    "0 Demo, runs on any computer",
    """# The whole method, small

Press **Run**. Nothing has to be downloaded, and no GPU is needed: a tiny Wan2.1 and two LoRAs come with this pack. One LoRA
was trained on drawn scenes with many things in them, the other on the same scenes with few of them.

1. **Subtract LoRAs** takes the second from the first: what they share cancels, the number of things is left.
2. **Select Blocks** keeps attention, **Re-rank** cuts it to rank 4, **Save LoRA** writes the slider into the loras folder.
3. **Strength Sweep** tries −3 to +3, **Sweep Grid** shows every strength. 0, with a frame, is the model as it is.
4. **Sweep Response** draws what changed with the strength, and what should not have. (Ignore
*motion* here: the four pictures are not frames of one clip.)

**Then play:** another seed in *KSampler*, other blocks in the grid, rank 1. Only what depends on it runs again.

The text is an embedding of zeros, because this small model has never seen a word.
""",
    [
        [DEMO_MODEL],
        [replace(DEMO_PAIR, columns=[*DEMO_PAIR.columns[:-1], [*DEMO_PAIR.columns[-1], DEMO_SAVE]])],
        [
            Group(
                "3. Every strength",
                [
                    [SWEEP],
                    [
                        Node(
                            "slider",
                            "DiffLoraSliderModel",
                            {"apply": "auto"},
                            {"model": "shift", "lora": "rank", "strength": "sweep"},
                        ),
                    ],
                ],
                PLUM,
            ),
        ],
        [
            Group(
                "4. Four pictures, without a text",
                [
                    [
                        Node("text", "DiffLoraZeroText"),
                        Node(
                            "frames",
                            "EmptyHunyuanLatentVideo",
                            {"width": 96, "height": 96, "length": 1, "batch_size": 4},
                        ),
                        Node("vae", "VAELoader", {"vae_name": "difflora_demo_vae.safetensors"}),
                    ],
                    [
                        Node(
                            "sampler",
                            "KSampler",
                            {
                                "seed": 6,
                                "steps": 20,
                                "cfg": 1.0,
                                "sampler_name": "euler",
                                "scheduler": "simple",
                                "denoise": 1.0,
                            },
                            {"model": "slider", "positive": "text", "negative": "text", "latent_image": "frames"},
                        ),
                        Node("decode", "VAEDecode", {}, {"samples": "sampler", "vae": "vae"}),
                        Node(
                            "larger",
                            "ImageScale",
                            {"upscale_method": "bicubic", "width": 192, "height": 192, "crop": "disabled"},
                            {"image": "decode"},
                        ),
                    ],
                    [
                        Node(
                            "grid",
                            "DiffLoraSweepGrid",
                            {"arrange": "row", "cell_size": 192, "fps": 2.0, "baseline": 0.0},
                            {"images": "larger"},
                            size=(460, None),
                        ),
                    ],
                    [
                        Node(
                            "save",
                            "SaveImage",
                            {"filename_prefix": "difflora_demo"},
                            {"images": "grid"},
                            size=(420, 300),
                        ),
                    ],
                ],
                GREY,
            )
        ],
        [
            Group(
                "5. What the slider does",
                [
                    [
                        Node(
                            "response",
                            "DiffLoraSliderResponse",
                            {
                                "target": "edges",
                                "colour_limit": 5.0,
                                "brightness_limit": 10.0,
                                "saturation_limit": 10.0,
                            },
                            {"sweep": "grid:1"},
                            size=(480, None),
                        )
                    ]
                ],
                PLUM,
            )
        ],
    ],
)


def trained_group(title: str, model: str, folders: tuple[str, str], size: int, **settings: Any) -> Group:
    """From pairs of pictures to the slider LoRA, under the name "train"; nodes "vae" and "text" are elsewhere."""
    values = {
        "mode": "direct",
        "selection": "attn",
        "rank": 4,
        "noise": "composition",
        "seed": 0,
        "reach": 3.0,
    } | settings
    return Group(
        title,
        [
            [
                Node(
                    "pairs",
                    "DiffLoraEncodePairs",
                    {"folder_a": folders[0], "folder_b": folders[1], "size": size},
                    {"vae": "vae"},
                )
            ],
            [
                Node(
                    "train",
                    "DiffLoraTrainSlider",
                    values,
                    {"model": model, "pairs": "pairs", "conditioning": "text", "vae": "vae"},
                    size=(420, None),
                )
            ],
            [
                Node(
                    "keep",
                    "DiffLoraSave",
                    {
                        "filename_prefix": values["name"],
                        "dtype": "float32",
                        "dialect": "native",
                        "if_exists": "overwrite",
                    },
                    {"lora": "train"},
                ),
                Node("loss", "PreviewImage", {}, {"images": "train:4"}, "Loss", (340, 260)),
            ],
        ],
        GREEN,
    )


*_, DEMO_PICTURES, DEMO_RESPONSE = DEMO.stacks

TRAIN_DEMO = Workflow(
    "8 Train a slider, any computer",
    """# A slider from pairs of pictures

Press **Run**. Nothing has to be downloaded, and no GPU is needed: a tiny Wan2.1 and 126 pairs of drawn scenes come with this
pack, one picture with many things in it and its twin with few. All of it takes about two and a half minutes of one processor core.

1. **Encode Pairs** takes the pictures through the VAE.
2. **Train Slider** trains one small LoRA that leads to many with +, and to few with −. It shows −3, 0 and +3 while it works.
3. **Strength Sweep** and **Sweep Grid** show every strength, **Sweep Response** draws what changed.

**Cancel** whenever you like: the next run goes on from where it was. For more steps, raise *steps*.

**With your own pairs:** put the two pictures of each pair under one name into two folders below **input**, and write their names
into *Encode Pairs*. Twenty pairs can be enough.

The text is an embedding of zeros, because this small model has never seen a word.
""",
    [
        [
            Group(
                "1. A tiny Wan2.1",
                [
                    [
                        Node(
                            "unet",
                            "UNETLoader",
                            {"unet_name": "difflora_demo_wan.safetensors", "weight_dtype": "default"},
                        ),
                        Node("vae", "VAELoader", {"vae_name": "difflora_demo_vae.safetensors"}),
                    ],
                    [
                        Node("shift", "ModelSamplingSD3", {"shift": 3.0}, {"model": "unet"}),
                        Node("text", "DiffLoraZeroText", {}),
                    ],
                ],
                BLUE,
            ),
            trained_group(
                "2. From pairs to a slider",
                "unet",
                ("demo/pairs/dense", "demo/pairs/sparse"),
                96,
                name="difflora_demo_trained",
                steps=100,
                batch=4,
                learning_rate="1e-3",
                reach=2.0,  # the loss is cautious: docs/training.md
            ),
        ],
        [
            Group(
                "3. Every strength",
                [
                    [SWEEP],
                    [
                        Node(
                            "slider",
                            "DiffLoraSliderModel",
                            {"apply": "auto"},
                            {"model": "shift", "lora": "train", "strength": "sweep"},
                        ),
                    ],
                ],
                PLUM,
            ),
        ],
        [
            replace(
                DEMO_PICTURES[0],
                columns=[
                    [node for node in column if node.name not in ("text", "vae")] for column in DEMO_PICTURES[0].columns
                ],
            )
        ],
        DEMO_RESPONSE,
    ],
)

TRAIN_WAN = Workflow(
    "9 Train on Wan2.1, untried",
    """# A slider for Wan2.1-T2V-14B, from pairs of pictures

**Nobody has run this on a GPU yet.** By arithmetic it needs about 17 GB at 192 × 192 (weights 14.3); the node says what it needs before it
starts. If you try it, please tell how it went.

1. Put your pairs into **output/density/detailed** and **output/density/sparse** (*Save Pair* does so), or name other folders.
2. Press Run. **Train Slider** keeps a checkpoint every 25 steps; Cancel loses nothing.
3. Move **strength** on *LoRA Slider (model)* and run again: only the pictures are made anew.

The learning rate, 2e-5 with Lion, is the one that the first sliders of this kind were trained with, on 5,000 steps of one
picture; 1000 steps of four pairs are a guess. Does the preview hardly change? More steps, or **5e-5**.

**Files** (in ComfyUI's **models** folder)

"""
    + files_needed(
        "wan2.1_t2v_14B_fp8_e4m3fn.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"
    )
    + """
No LoRA for fewer steps on the model while it trains.
""",
    [
        [
            Group(
                "1. Model and the empty text",
                [
                    [
                        Node(
                            "unet",
                            "UNETLoader",
                            {"unet_name": "wan2.1_t2v_14B_fp8_e4m3fn.safetensors", "weight_dtype": "default"},
                        ),
                        Node("vae", "VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
                    ],
                    [
                        Node(
                            "clip", "CLIPLoader", {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"}
                        ),
                        Node("text", "DiffLoraEmptyText", {}, {"clip": "clip"}),
                    ],
                ],
                BLUE,
            ),
            trained_group(
                "2. From pairs to a slider",
                "unet",
                ("output/density/detailed", "output/density/sparse"),
                192,
                name="wan_slider",
                steps=1000,
                batch=4,
                learning_rate="2e-5",
                preview_every=100,
            ),
        ],
        [
            Group(
                "3. The slider on the model",
                [
                    [
                        Node("shift", "ModelSamplingSD3", {"shift": 8.0}, {"model": "unet"}),
                        Node(
                            "slider",
                            "DiffLoraSliderModel",
                            {"strength": 2.0, "apply": "auto"},
                            {"model": "shift", "lora": "train"},
                        ),
                    ],
                ],
                PLUM,
            ),
        ],
        [
            Group(
                "4. One picture",
                [
                    [
                        Node(
                            "frames",
                            "EmptyHunyuanLatentVideo",
                            {"width": 832, "height": 480, "length": 1, "batch_size": 1},
                        ),
                        Node(
                            "sampler",
                            "KSampler",
                            {
                                "seed": SEED,
                                "steps": 30,
                                "cfg": 1.0,
                                "sampler_name": "euler",
                                "scheduler": "simple",
                                "denoise": 1.0,
                            },
                            {"model": "slider", "positive": "text", "negative": "text", "latent_image": "frames"},
                        ),
                    ],
                    [
                        Node("decode", "VAEDecode", {}, {"samples": "sampler", "vae": "vae"}),
                        Node(
                            "save",
                            "SaveImage",
                            {"filename_prefix": "wan_slider"},
                            {"images": "decode"},
                            None,
                            (480, 360),
                        ),
                    ],
                ],
                GREY,
            )
        ],
    ],
)


def slider_map(values: dict[str, Any], **inputs: str) -> Node:
    return Node(
        "map", "DiffLoraSliderMap", {"steps": "", "frames": "", "feather": 1} | values, inputs, size=(420, None)
    )


def all_but_the_middle(width: int, height: int, middle: tuple[int, int]) -> list[Node]:
    """White, with a black rectangle in the middle, under the name "background"."""
    across, down = middle
    place = {"x": (width - across) // 2, "y": (height - down) // 2, "operation": "subtract"}
    return [
        Node("white", "SolidMask", {"value": 1.0, "width": width, "height": height}, title="White: the slider acts"),
        Node("middle", "SolidMask", {"value": 1.0, "width": across, "height": down}, title="What is in front"),
        Node("background", "MaskComposite", place, {"destination": "white", "source": "middle"}),
    ]


def native_with_map(name: str, note: str, masks: list[Node], values: dict[str, Any], mapped: Node) -> Workflow:
    """Workflow 3 with a map on its slider."""
    slider_with_map = Node(
        "slider",
        "DiffLoraSliderModel",
        {"apply": "auto"} | values,
        {"model": "distill", "lora": "rank", "map": "map"},
    )
    groups = [Group("3. Where the slider acts", [*([masks] if masks else []), [mapped], [slider_with_map]], PLUM)]
    return Workflow(name, note + FILES_FOR_NATIVE, [*NATIVE.stacks[:2], groups, *NATIVE.stacks[3:]])


def wrapper_with_map(name: str, note: str, masks: list[Node], values: dict[str, Any], mapped: Node) -> Workflow:
    """Workflow 1 with a mapped slider behind its other LoRAs."""
    model, loras = FAST.stacks[1]
    set_loras = replace(SET_LORAS, inputs={"model": "model", "lora": "distill"})
    slider_with_map = Node(
        "slider",
        "DiffLoraMappedSliderWanVideo",
        {"shift": 5.0} | values,
        {"model": "loras", "lora": "rank", "map": "map", "image_embeds": "frames"},
        size=(380, None),  # its title is long in Japanese
    )
    others = replace(loras, columns=[[*loras.columns[0], set_loras]])
    sampler = wrapper_sampler(6, 1.0)
    sampling = Group("5. Sampling", [[FRAMES], [replace(sampler, inputs=sampler.inputs | {"model": "slider"})]], BLUE)
    groups = [Group("4. Where the slider acts", [*([masks] if masks else []), [mapped], [slider_with_map]], PLUM)]
    files = "\nThe files are those of workflow 1.\n"
    stacks = [FAST.stacks[0], [model, others], groups, FAST.stacks[2], [sampling], FAST.stacks[4]]
    return Workflow(name, note + files + "\n**Keep merge_loras off on every LoRA.**\n", stacks)


FILES_FOR_NATIVE = """
The files are those of workflow 3.
"""
RAMP_NOTE = """# One clip, from −3 to +3

The slider rises while the clip runs: little of the property in the first frame, much in the last.

1. Choose your two LoRAs on the left.
2. Press Run. Every step takes three passes of the model (−3, 0 and +3), so it takes three times as long.
3. Draw another curve in **Slider Map**: over the frames, or over the steps.

The frames of a clip look at each other, so some of the effect is lost: on the demo, a ramp keeps about three quarters of the
span. Nobody has measured it on Wan2.1-T2V-14B yet.
"""
BACKGROUND_NOTE = """# The slider on the background only

A mask says where the slider acts: white with the slider, black without. Here what is black is a rectangle in the middle.

1. Choose your two LoRAs on the left.
2. Press Run. Every step takes two passes of the model, so it takes twice as long.
3. Wire your own mask into **Slider Map**: one picture, or one for each frame, of any size.

What is black is *like* the clip without the slider, not the same. Nobody has measured it on Wan2.1-T2V-14B yet.
"""
RAMP = slider_map({"frames": "0:0, 100:1"})
BACKGROUND_MAP = slider_map({"feather": 2}, mask="background")
FROM_MINUS = {"strength": 3.0, "strength_outside": -3.0}
MIDDLE = all_but_the_middle(640, 480, (240, 400))

CLIP_NATIVE = native_with_map("12 Clip from -3 to +3", RAMP_NOTE, [], FROM_MINUS, RAMP)
BACKGROUND_NATIVE = native_with_map("13 Background only", BACKGROUND_NOTE, MIDDLE, {"strength": 2.0}, BACKGROUND_MAP)
CLIP_WRAPPER = wrapper_with_map("15 Clip from -3 to +3, wrapper", RAMP_NOTE, [], FROM_MINUS, RAMP)
BACKGROUND_WRAPPER = wrapper_with_map(
    "16 Background only, wrapper", BACKGROUND_NOTE, MIDDLE, {"strength": 2.0}, BACKGROUND_MAP
)


def _demo_branch(name: str, model: str) -> list[Node]:
    values = {"seed": 6, "steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    inputs = {"model": model, "positive": "text", "negative": "text", "latent_image": "frames"}
    return [
        Node(f"sampler {name}", "KSampler", values, inputs, f"KSampler: {name}"),
        Node(f"decode {name}", "VAEDecode", {}, {"samples": f"sampler {name}", "vae": "vae"}),
    ]


def _demo_slider(name: str, strength: float, outside: float) -> Node:
    return Node(
        f"slider {name}",
        "DiffLoraSliderModel",
        {"apply": "auto", "strength": strength, "strength_outside": outside},
        {"model": "shift", "lora": "rank", "map": f"map {name}"},
        f"Slider: {name}",
    )


MASKS_DEMO = Workflow(
    "11 Two masks, any computer",
    """# One picture, two masks

Press **Run**. Nothing has to be downloaded, and no GPU is needed: a tiny Wan2.1 and two LoRAs come with this pack.

The same pictures three times: without the slider (top row); with many things in the left half and few in the right (+3 and −3);
and with many things everywhere but in the middle.

**Then play:** draw a curve over the steps in **Slider Map**, set *feather* to 0 and look for the seam, or wire another mask in.

What lies outside the mask is *like* the picture without the slider, not the same.
""",
    [
        [DEMO_MODEL],
        [DEMO_PAIR],
        [
            Group(
                "3. Two masks",
                [
                    [
                        Node("black", "SolidMask", {"value": 0.0, "width": 96, "height": 96}),
                        Node("left", "SolidMask", {"value": 1.0, "width": 48, "height": 96}),
                        Node(
                            "half",
                            "MaskComposite",
                            {"x": 0, "y": 0, "operation": "add"},
                            {"destination": "black", "source": "left"},
                        ),
                    ],
                    all_but_the_middle(96, 96, (48, 48)),
                    [replace(slider_map({}, mask="half"), name="map half", title="Slider Map: left half")],
                    [replace(slider_map({}, mask="background"), name="map background", title="Slider Map: background")],
                ],
                PLUM,
            ),
            Group(
                "4. A slider for each",
                [[_demo_slider("half", 3.0, -3.0)], [_demo_slider("background", 3.0, 0.0)]],
                PLUM,
            ),
        ],
        [
            Group(
                "5. Four pictures each",
                [
                    [
                        Node("text", "DiffLoraZeroText"),
                        Node(
                            "frames",
                            "EmptyHunyuanLatentVideo",
                            {"width": 96, "height": 96, "length": 1, "batch_size": 4},
                        ),
                        Node("vae", "VAELoader", {"vae_name": "difflora_demo_vae.safetensors"}),
                    ],
                    _demo_branch("base", "shift"),
                    _demo_branch("half", "slider half"),
                    _demo_branch("background", "slider background"),
                ],
                BLUE,
            )
        ],
        [
            Group(
                "6. Side by side",
                [
                    [
                        Node("two", "ImageBatch", {}, {"image1": "decode base", "image2": "decode half"}),
                        Node("three", "ImageBatch", {}, {"image1": "two", "image2": "decode background"}),
                        Node(
                            "larger",
                            "ImageScale",
                            {"upscale_method": "bicubic", "width": 192, "height": 192, "crop": "disabled"},
                            {"image": "three"},
                        ),
                    ],
                    [
                        Node(
                            "save",
                            "SaveImage",
                            {"filename_prefix": "difflora_masks"},
                            {"images": "larger"},
                            size=(420, 520),  # a square picture as wide as the node, and what stands above and below it
                        )
                    ],
                ],
                GREY,
            )
        ],
    ],
)


NOISES = ("high", "low")


def of_both(kind: str, type: str, title: str, values: dict[str, Any], **inputs: str) -> list[Node]:
    """A node for each of Wan2.2's models; "#" is "high" or "low" in inputs, titles and values."""

    def said(text: Any, noise: str) -> Any:
        return text.replace("#", noise) if isinstance(text, str) else text

    return [
        Node(
            f"{kind}_{noise}",
            type,
            {name: said(value, noise) for name, value in values.items()},
            {name: said(source, noise) for name, source in inputs.items()},
            said(title, noise),
        )
        for noise in NOISES
    ]


TWIN_PAIRS = Group(
    "1. Each pair becomes a slider",
    [
        of_both(
            "pair",
            "DiffLoraLoadPair",
            "Pair for # noise",
            {"lora_a": "dense_#_noise.safetensors", "lora_b": "sparse_#_noise.safetensors"},
        ),
        [
            *of_both(
                "subtract",
                "DiffLoraSubtract",
                "A − B for # noise",
                {"weight_a": 1.0, "weight_b": 1.0, "unmatched": "keep"},
                a="pair_#:0",
                b="pair_#:1",
            ),
            Node("selection", "PrimitiveString", {"value": "attn"}, title="Selection for both"),
            Node("keep", "PrimitiveInt", {"value": 4}, title="Rank for both"),
        ],
        of_both("select", "DiffLoraSelectBlocks", "Blocks for # noise", {}, lora="subtract_#", selection="selection"),
        of_both("rank", "DiffLoraRerank", "Rank for # noise", {"rule": "rank"}, lora="select_#", rank="keep"),
    ],
    GREEN,
)
TWIN_FILES = Group(
    "2. Both sliders as files",
    [
        of_both(
            "file",
            "DiffLoraSave",
            "Save for # noise",
            {"filename_prefix": "density_#", "dtype": "bfloat16", "dialect": "native", "if_exists": "overwrite"},
            lora="rank_#",
        )
    ],
    GREEN,
)
TWIN_STRENGTH = Node("strength", "PrimitiveFloat", {"value": 2.0}, title="Strength for both")

TWINS_NOTE = """# A slider on both models of Wan2.2

Wan2.2-T2V-A14B is two models: one makes the first steps, with high noise, the other makes the rest. Each was trained on its own,
so there are two pairs of LoRAs and two sliders. One selection, one rank and one strength serve both.

1. Choose your four LoRAs on the left, a pair for each model.
2. Press Run. Both sliders are saved, **density_high** and **density_low**.
3. Change **Strength for both** and run again. Both sliders follow, and neither model is loaded again.

**To sweep** the strength, put *Strength Sweep* in the place of **Strength for both**, and *Sweep Grid* behind {decode}.

**Files** (in ComfyUI's **models** folder)

{files}
The two models are 14 GB each. Nobody has run this workflow at full size yet.
"""

TWINS = Workflow(
    "10 Wan2.2, two models",
    TWINS_NOTE.format(
        decode="*VAE Decode*",
        files=files_needed(
            "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
            "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
            "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
            "wan_2.1_vae.safetensors",
            yours="your four LoRAs, two trained on each model, alike",
        ),
    ),
    [
        [TWIN_PAIRS],
        [TWIN_FILES],
        [
            Group(
                "3. Both models, a slider on each",
                [
                    [
                        *of_both(
                            "unet",
                            "UNETLoader",
                            "Model for # noise",
                            {"unet_name": "wan2.2_t2v_#_noise_14B_fp8_scaled.safetensors", "weight_dtype": "default"},
                        ),
                        TWIN_STRENGTH,
                    ],
                    [
                        *of_both(
                            "slider",
                            "DiffLoraSliderModel",
                            "Slider for # noise",
                            {"apply": "auto"},
                            model="unet_#",
                            lora="rank_#",
                            strength="strength",
                        ),
                        *of_both("shift", "ModelSamplingSD3", "Shift for # noise", {"shift": 8.0}, model="slider_#"),
                    ],
                ],
                PLUM,
            ),
        ],
        [
            Group(
                "Text",
                [
                    [
                        Node(
                            "clip", "CLIPLoader", {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"}
                        ),
                        Node("positive", "CLIPTextEncode", {"text": PROMPT}, {"clip": "clip"}, "Prompt", (400, 200)),
                        Node(
                            "negative",
                            "CLIPTextEncode",
                            {"text": NEGATIVE},
                            {"clip": "clip"},
                            "Negative prompt",
                            (400, 200),
                        ),
                    ]
                ],
                GOLD,
            ),
        ],
        [
            Group(
                "4. Sampling: high noise, then low noise",
                [
                    [
                        Node(
                            "frames",
                            "EmptyHunyuanLatentVideo",
                            {"width": 640, "height": 480, "length": 81, "batch_size": 1},
                        ),
                        *(
                            Node(
                                f"sampler_{noise}",
                                "KSamplerAdvanced",
                                {
                                    "noise_seed": SEED,
                                    "steps": 20,
                                    "cfg": 3.5,
                                    "sampler_name": "euler",
                                    "scheduler": "simple",
                                    "add_noise": "enable" if noise == "high" else "disable",
                                    "start_at_step": 0 if noise == "high" else 10,
                                    "end_at_step": 10 if noise == "high" else 10000,
                                    "return_with_leftover_noise": "enable" if noise == "high" else "disable",
                                },
                                {
                                    "model": f"shift_{noise}",
                                    "positive": "positive",
                                    "negative": "negative",
                                    "latent_image": "frames" if noise == "high" else "sampler_high",
                                },
                                f"Steps with {noise} noise",
                            )
                            for noise in NOISES
                        ),
                    ]
                ],
                BLUE,
            ),
        ],
        [native_video("sampler_low")],
    ],
)

# In columns of about one height, and so that wires run to the right.
TWIN_PAIRS_LEVEL = regrouped(
    [[TWIN_PAIRS]],
    [
        (
            TWIN_PAIRS.title,
            [
                ["pair_high", "selection", "keep"],
                ["pair_low", "subtract_high", "subtract_low"],
                ["select_high"],
                ["rank_high", "select_low", "rank_low"],
            ],
            GREEN,
        )
    ],
)
[TWIN_ENCODER], [TWIN_PROMPTS] = wrapper_text(nag=False).columns
TWIN_TEXT = Group(
    "Text and size",
    [[TWIN_ENCODER], [replace(TWIN_PROMPTS, title="Both prompts", size=(340, 410))], [FRAMES]],
    GOLD,
)

TWINS_WRAPPER = Workflow(
    "17 Wan2.2, two models, wrapper",
    TWINS_NOTE.format(
        decode="*WanVideo Decode*",
        files=files_needed(
            "Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ.safetensors",
            "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors",
            "umt5-xxl-enc-bf16.safetensors",
            "Wan2_1_VAE_bf16.safetensors",
            yours="your four LoRAs, two trained on each model, alike",
        ),
    )
    + """
**Keep merge_loras off** on both sliders.

**Folded nodes** hardly need a change; a click on the mark before its title opens one.
""",
    smaller(
        [
            *TWIN_PAIRS_LEVEL,
            [TWIN_FILES],
            [
                Group(
                    "3. Both models, a slider on each",
                    [
                        [
                            SWAP,
                            *(
                                Node(
                                    f"model_{noise}",
                                    "WanVideoModelLoader",
                                    wrapper_model(model=WRAPPER_TWINS[noise], attention_mode="sdpa"),
                                    {"block_swap_args": "swap"},
                                    f"Model for {noise} noise",
                                )
                                for noise in NOISES
                            ),
                        ],
                        [
                            TWIN_STRENGTH,
                            *of_both(
                                "slider",
                                "DiffLoraSliderWanVideo",
                                "Slider for # noise",
                                {"merge_loras": False, "low_mem_load": False},
                                lora="rank_#",
                                strength="strength",
                            ),
                            *of_both(
                                "loras",
                                "WanVideoSetLoRAs",
                                "Set for # noise",
                                {},
                                model="model_#",
                                lora="slider_#",
                            ),
                        ],
                    ],
                    PLUM,
                ),
            ],
            [TWIN_TEXT],
            [
                Group(
                    "4. Sampling: high noise, then low noise",
                    [
                        [
                            *(
                                Node(
                                    f"sampler_{noise}",
                                    "WanVideoSampler",
                                    {
                                        "steps": 20,
                                        "cfg": 3.5,
                                        "shift": 8.0,
                                        "seed": SEED,
                                        "force_offload": True,
                                        "scheduler": "unipc",
                                        "riflex_freq_index": 0,
                                        "start_step": 0 if noise == "high" else 10,
                                        "end_step": 10 if noise == "high" else -1,
                                    },
                                    {"model": f"loras_{noise}", "image_embeds": "frames", "text_embeds": "text"}
                                    | ({} if noise == "high" else {"samples": "sampler_high"}),
                                    f"Steps with {noise} noise",
                                )
                                for noise in NOISES
                            ),
                        ]
                    ],
                    BLUE,
                ),
            ],
            [wrapper_video("sampler_low")],
        ],
        {},
        folded=("subtract_high", "subtract_low", "select_low", "rank_low", "decode", "video"),
    ),
)


GREEN_PAIRS = Node(
    "pairs",
    "DiffLoraEncodePairs",
    {"folder_a": "demo/pairs/dense", "folder_b": "demo/pairs/sparse", "size": 96, "tint": "#00c800"},
    {"vae": "vae"},
    "Encode Pairs: green",
)
GREEN_SLIDER = Node(
    "green",
    "DiffLoraTrainSlider",
    {
        "name": "difflora_demo_green",
        "mode": "direct",
        "selection": "attn",
        "rank": 4,
        "steps": 100,
        "batch": 4,
        "learning_rate": "1e-3",
        "noise": "composition",
        "seed": 1,
        "reach": 3.0,
    },
    {"model": "unet", "pairs": "pairs", "conditioning": "text", "vae": "vae"},
    "Train Slider: green",
)

INDEPENDENT_DEMO = Workflow(
    "14 Independent sliders",
    """# Two sliders that leave each other alone

Press **Run**. Nothing has to be downloaded, and no GPU is needed: a tiny Wan2.1, two LoRAs and drawn pictures come with this
pack. One slider is trained first, which takes a minute or two.

1. The first slider, many things or few, is the difference of the two LoRAs.
2. **Encode Pairs** with a **tint** and **Train Slider** make the second, which turns pictures green.
3. **Independent Sliders** removes from the second what it shares with the first. The first stays as it is.
4. Both are on one model: the first at −3 to +3, the second at 2 all the time.

**Then play:** set the second to −2 or 0, or wire *Train Slider* straight into the second slider and compare.

**With your own sliders:** put *Load LoRA (Differential)* in the place of everything before *Independent Sliders*.
""",
    [
        [
            Group(
                "1. The first slider: many things, or few",
                [
                    [
                        Node(
                            "pair",
                            "DiffLoraLoadPair",
                            {
                                "lora_a": "difflora_demo_dense.safetensors",
                                "lora_b": "difflora_demo_sparse.safetensors",
                            },
                        ),
                        replace(DEMO_PAIR.columns[0][2], inputs={"a": "pair:0", "b": "pair:1"}),
                    ],
                    *DEMO_PAIR.columns[1:],
                ],
                GREEN,
            )
        ],
        [
            Group(
                "2. A tiny Wan2.1",
                [
                    [
                        Node(
                            "unet",
                            "UNETLoader",
                            {"unet_name": "difflora_demo_wan.safetensors", "weight_dtype": "default"},
                        ),
                        Node("vae", "VAELoader", {"vae_name": "difflora_demo_vae.safetensors"}),
                    ],
                    [
                        Node("shift", "ModelSamplingSD3", {"shift": 3.0}, {"model": "unet"}),
                        Node("text", "DiffLoraZeroText", {}),
                    ],
                ],
                BLUE,
            ),
        ],
        [Group("3. The second slider: green", [[GREEN_PAIRS], [GREEN_SLIDER]], GREEN)],
        [
            Group(
                "4. Independent of each other, on one model",
                [
                    [
                        Node(
                            "independent",
                            "DiffLoraIndependent",
                            {"directions": 2},
                            {"lora_1": "rank", "lora_2": "green"},
                        ),
                        SWEEP,
                    ],
                    [
                        Node(
                            "first",
                            "DiffLoraSliderModel",
                            {"apply": "auto"},
                            {"model": "shift", "lora": "independent", "strength": "sweep"},
                            "Slider: things",
                        ),
                        Node(
                            "slider",
                            "DiffLoraSliderModel",
                            {"apply": "auto", "strength": 2.0},
                            {"model": "first", "lora": "independent:1"},
                            "Slider: green",
                        ),
                    ],
                ],
                PLUM,
            ),
        ],
        [
            replace(
                DEMO_PICTURES[0],
                title="5. Four pictures at every strength",
                columns=[
                    [node for node in column if node.name not in ("text", "vae")] for column in DEMO_PICTURES[0].columns
                ],
            )
        ],
    ],
)


WORKFLOWS = (
    DEMO,
    FAST,
    FULL,
    NATIVE,
    EXPLORE,
    SWEEP_WRAPPER,
    SWEEP_NATIVE,
    TRAIN_DEMO,
    TRAIN_WAN,
    TWINS,
    MASKS_DEMO,
    CLIP_NATIVE,
    BACKGROUND_NATIVE,
    INDEPENDENT_DEMO,
    CLIP_WRAPPER,
    BACKGROUND_WRAPPER,
    TWINS_WRAPPER,
)
