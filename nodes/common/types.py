"""Types of the wires: our own, and four of WanVideoWrapper's.

`LORA_DELTA` carries a `difflora.Lora`. The wrapper's types are matched by their names alone, so its pack need not be
installed for these nodes to load; what their values look like is written down in `wrapper_wires.py`.
"""

from comfy_api.v0_0_2 import io

LoraDelta = io.Custom("LORA_DELTA")

# A difflora.steering.SliderMap: where and when a slider acts.
SliderMapType = io.Custom("SLIDER_MAP")

WrapperLora = io.Custom("WANVIDLORA")
WrapperModel = io.Custom("WANVIDEOMODEL")
WrapperImages = io.Custom("WANVIDIMAGE_EMBEDS")
WrapperText = io.Custom("WANVIDEOTEXTEMBEDS")

# A difflora.clips.response.Sweep: the clips of a Strength Sweep.
SweepClips = io.Custom("DIFFLORA_SWEEP")

# A difflora.clips.response.Verdict: what Sweep Response has measured.
MeasuredResponse = io.Custom("DIFFLORA_RESPONSE")

# A difflora.training.latents.SliderPairs: latents by pair.
SliderPairsWire = io.Custom("SLIDER_PAIRS")
