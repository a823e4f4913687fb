"""From frames to two trained sides: pair, save and check images, and write the recipe to train on them.

A dataset is a folder below ComfyUI's output folder with one folder for each side. Frames are read from below
the input or the output folder. Nothing else is ever read or written.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.v0_0_2 import io, ui
from comfy_execution.graph import ExecutionBlocker
from server import PromptServer

from ...difflora.errors import DiffLoraError, FileError, OutputError, PairError, TrainingError
from ...difflora.sentence import Sentence
from ...difflora.training import musubi, pairs
from ...difflora.training.musubi import Machine, Training
from ...difflora.training.pairs import Dataset, Limits
from ..common.fingerprints import fingerprint
from ..common.fonts import font_for
from ..common.inputs import one_of, within
from ..common.messages import report
from ..common.messages import ui as messages
from ..common.paths import inside
from ..common.progress import progress_bar
from ..common.search import found_by

CATEGORY = "Differential LoRA/dataset"


def _dataset(name: str, side_a: str, side_b: str, error: type[DiffLoraError] = FileError) -> Dataset:
    folder = inside(folder_paths.get_output_directory(), name, error)
    for side in (side_a, side_b):
        if inside(folder, side, error).parent != folder:
            raise error(f"{side!r} cannot name a side: it is a path. Use one word, such as 'detailed'.")
    if side_a.casefold() == side_b.casefold():
        raise error(f"Both sides are called {side_a!r}: give each another name.")
    return Dataset(folder, (side_a, side_b))


def _state(name: str | None, side_a: str | None, side_b: str | None) -> object:
    """Tells ComfyUI that a dataset has changed. A name that comes through a link is not known yet: always run."""
    return fingerprint(_dataset(name, side_a, side_b).state()) if name and side_a and side_b else math.nan


def frames(folder: str, clips: bool = False) -> dict[str, list[Path]]:
    """Stem -> images of a folder written as input/… or output/…; demo/… means what comes with this pack.

    clips   clips in place of images
    """
    root, _, rest = folder.replace("\\", "/").partition("/")
    roots = {
        "input": folder_paths.get_input_directory,
        "output": folder_paths.get_output_directory,
        "demo": lambda: Path(__file__).resolve().parents[2] / "demo",
    }
    if root not in roots:
        raise FileError(f"folder is {folder!r}: begin with input/ or output/, as in input/frames.")
    where = inside(roots[root](), rest)
    found = pairs.find_clips(where) if clips else pairs.find_images(where)
    if not found and clips:
        kinds = " ".join(sorted(pairs.CLIP_EXTENSIONS))
        raise FileError(f"{folder}: no clips there. Put files of the kinds {kinds}, or folders of frames, into it.")
    if not found:
        kinds = " ".join(sorted(pairs.IMAGE_EXTENSIONS))
        raise FileError(f"{folder}: no images there. Put files of the kinds {kinds} into this folder.")
    for stem, files in found.items():
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise FileError(f"{folder}: {names} share the name {stem!r}, so their twins would too. Rename one.")
    return found


def _dataset_inputs(doing: str) -> list[io.String.Input]:
    return [
        io.String.Input("dataset", default="density", tooltip=f"The folder {doing}, below ComfyUI's output folder."),
        io.String.Input("side_a", default="detailed", tooltip="Side A's folder: the one with more of the property."),
        io.String.Input("side_b", default="sparse", tooltip="Side B's folder: the one with less of it."),
    ]


class ImageFolder(io.ComfyNode):
    """One run makes one pair, or a few: memory use stays constant, and the result is on disk before the next run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraImageFolder",
            display_name="Image Folder (pairs)",
            category=CATEGORY,
            **found_by("load images", "batch", "dataset", "train", "pairs"),
            description="Gives the next frames that have no pair yet. Queue it once for each frame; a run after the last one "
            "does nothing. Stop and resume whenever you like.",
            inputs=[
                io.String.Input("folder", default="input/frames", tooltip="The frames: input/… or output/…"),
                *_dataset_inputs("that the pairs go to"),
                io.Int.Input(
                    "per_run", default=1, min=1, max=64, tooltip="Frames in one run. More: fewer runs, more memory."
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="image", is_output_list=True, tooltip="The frames, one after the other."
                ),
                io.String.Output(
                    "stem",
                    display_name="stem",
                    is_output_list=True,
                    tooltip="Their names without ending, for Save Pair.",
                ),
                io.String.Output("progress", display_name="progress", tooltip="How many pairs are done, of how many."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: str | None = None,
        dataset: str | None = None,
        side_a: str | None = None,
        side_b: str | None = None,
        **_: Any,
    ) -> object:
        if not (folder and dataset and side_a and side_b):
            return math.nan  # a name comes through a link: always run
        done = _dataset(dataset, side_a, side_b).done()
        found = frames(folder).items()
        return fingerprint([(stem, files[0].stat().st_mtime_ns, stem in done) for stem, files in found])

    @classmethod
    def execute(cls, folder: str, dataset: str, side_a: str, side_b: str, per_run: int) -> io.NodeOutput:
        found = frames(folder)
        done = _dataset(dataset, side_a, side_b).done()
        waiting = [stem for stem in found if stem not in done]
        now = waiting[:per_run]
        progress = f"{len(found) - len(waiting)} of {len(found)} pairs done"
        # Without the names, which may come from anyone: pages of ComfyUI up to 0.3.75 show this text as HTML.
        PromptServer.instance.send_progress_text(progress, cls.hidden.unique_id)
        progress += f", now {', '.join(now)}" if now else ""
        if not now:
            nothing = ExecutionBlocker(None)
            return io.NodeOutput(nothing, nothing, progress)
        images = [pairs.to_tensor(pairs.read_image(found[stem][0]))[None] for stem in now]
        return io.NodeOutput(images, now, progress)


class SavePair(io.ComfyNode):
    """Saves both images under one name, with their captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraSavePair",
            display_name="Save Pair",
            category=CATEGORY,
            **found_by("dataset", "save images", "train", "before after"),
            description="Saves an image and its twin under the same name in the two folders of a dataset, "
            "each with a caption file.",
            inputs=[
                io.Image.Input("image_a", tooltip="The image with more of the property."),
                io.Image.Input(
                    "image_b", tooltip="Its twin with less. Scaled to the size of A if it has the same aspect ratio."
                ),
                io.String.Input("stem", default="pair_001", tooltip="The pair's name, without ending."),
                *_dataset_inputs("that the pair goes to"),
                io.Combo.Input(
                    "captions",
                    options=list(pairs.CAPTIONS),
                    tooltip="empty: the training sees nothing but the picture. same for both: the caption. one per side: "
                    "the side's word. caption and side word: both, with a comma. unique id: a made-up word for each pair.",
                ),
                io.String.Input("caption", default="", multiline=True, tooltip="For captions that use it."),
                io.String.Input("word_a", default="detailed scene", tooltip="Side A's word, for captions that use it."),
                io.String.Input("word_b", default="sparse scene", tooltip="Side B's word, for captions that use it."),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace a pair of this name. Off: a pair that differs is an error.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "saved", display_name="saved", tooltip="The files of the pair, below the output folder."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, dataset: str | None = None, side_a: str | None = None, side_b: str | None = None, **_: Any
    ) -> object:
        # A pair that was deleted must be saved again, although nothing before this node has changed.
        return _state(dataset, side_a, side_b)

    @classmethod
    def execute(
        cls,
        image_a: torch.Tensor,
        image_b: torch.Tensor,
        stem: str,
        dataset: str,
        side_a: str,
        side_b: str,
        captions: str,
        caption: str,
        word_a: str,
        word_b: str,
        overwrite: bool,
    ) -> io.NodeOutput:
        one_of("captions", captions, pairs.CAPTIONS)
        target = _dataset(dataset, side_a, side_b, OutputError)
        if not stem.strip():
            raise OutputError("stem is empty: give the pair a name, such as pair_001.")
        for side in target.sides:
            if inside(target.folder / side, f"{stem}.png", OutputError).parent != target.folder / side:
                raise OutputError(f"stem is {stem!r}, which is a path: use a name without / in it.")
        for name, image in (("image_a", image_a), ("image_b", image_b)):
            if len(image) != 1:
                raise PairError(
                    f"{name} is a batch of {len(image)} images, a pair is made of single ones. Split it first."
                )
        images = (pairs.to_image(image_a[0]), pairs.to_image(image_b[0]))
        texts = pairs.captions(captions, stem, caption, (word_a, word_b))
        written = pairs.save_pair(target, stem, images, texts, overwrite)
        relative = [path.relative_to(Path(folder_paths.get_output_directory()).resolve()) for path in written]
        shown = [
            ui.SavedResult(path.name, path.parent.as_posix(), io.FolderType.output)
            for path in relative
            if path.suffix == ".png"
        ]
        return io.NodeOutput("\n".join(path.as_posix() for path in relative), ui=ui.SavedImages(shown))


class CheckPairs(io.ComfyNode):
    """Measures every pair of a dataset and shows them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffLoraCheckPairs",
            display_name="Check Pairs",
            category=CATEGORY,
            **found_by("dataset", "compare images", "train", "quality check"),
            description="Looks for what spoils a pair: a missing twin or caption, a different size, too much or no change, "
            "drifted colours, the same picture twice. Writes check.csv into the dataset, replacing the last one.",
            inputs=[
                *_dataset_inputs("that is checked"),
                io.Float.Input(
                    "least_similar",
                    default=Limits.least_similar,
                    min=-1,
                    max=1,
                    step=0.01,
                    tooltip="Below this structural similarity, the twin shows something else.",
                ),
                io.Float.Input(
                    "most_similar",
                    default=Limits.most_similar,
                    min=-1,
                    max=1,
                    step=0.005,
                    tooltip="Above it, the edit has changed next to nothing.",
                ),
                io.Float.Input(
                    "colour_drift",
                    default=Limits.colour_drift,
                    min=0,
                    max=100,
                    step=0.5,
                    tooltip="Above it, the colours moved as a whole, and the slider would learn that. "
                    "In CIE Lab units: 2 is just visible.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "sheet", display_name="sheet", tooltip="Pages of pairs side by side, suspect ones first."
                ),
                io.String.Output("report", display_name="report", tooltip="What was found, in words."),
                io.String.Output("drop", display_name="drop", tooltip="The names of the suspect pairs, one per line."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, dataset: str | None = None, side_a: str | None = None, side_b: str | None = None, **_: Any
    ) -> object:
        return _state(dataset, side_a, side_b)

    @classmethod
    def execute(
        cls,
        dataset: str,
        side_a: str,
        side_b: str,
        least_similar: float,
        most_similar: float,
        colour_drift: float,
    ) -> io.NodeOutput:
        within(-1, 1, least_similar=least_similar, most_similar=most_similar)
        within(0, 100, colour_drift=colour_drift)
        checked = _dataset(dataset, side_a, side_b)
        checks = pairs.check_pairs(checked, Limits(least_similar, most_similar, colour_drift), progress_bar())
        pairs.write_csv(checks, checked)
        title = f"{dataset}: {side_a} and {side_b}"
        sheets = pairs.contact_sheets(checks, title, font_for(title, *(check.stem for check in checks)))
        images = torch.stack([pairs.to_tensor(sheet) for sheet in sheets])
        lines, suspects = pairs.overview(checks), pairs.suspects(checks)
        drop = "\n".join(check.stem for check in checks if check.problems)
        shown = ui.PreviewImage(images, cls=cls).as_dict() | messages(report(Sentence("Pairs"), lines, suspects))
        return io.NodeOutput(images, "\n".join(lines + suspects), drop, ui=shown)


class TrainingRecipe(io.ComfyNode):
    """Writes files and runs nothing: the user starts the training, on any machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = (*dataclasses.fields(Training), *dataclasses.fields(Machine))
        return io.Schema(
            node_id="DiffLoraTrainingRecipe",
            display_name="Training Recipe (musubi-tuner)",
            category=CATEGORY,
            **found_by("train", "musubi", "training config", "toml"),
            description="Writes what musubi-tuner needs to train both sides alike into the dataset's folder 'training': "
            "a dataset file and command files for Linux (.sh) and Windows (.bat) for each side.",
            inputs=[
                *_dataset_inputs("that is trained on"),
                io.String.Input("name", default="slider", tooltip="What the LoRA files' names start with."),
                *(_widget(setting) for setting in settings if not setting.metadata.get("later")),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace files of an earlier recipe."),
                *(_widget(setting) for setting in settings if setting.metadata.get("later")),
            ],
            outputs=[
                io.String.Output("files", display_name="files", tooltip="The files written, below the output folder.")
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, dataset: str, side_a: str, side_b: str, name: str, overwrite: bool, **settings: Any
    ) -> io.NodeOutput:
        target = _dataset(dataset, side_a, side_b, OutputError)
        recipe = Training(**_values(Training, settings))
        machine = Machine(**_values(Machine, settings))
        made = musubi.files(recipe, machine, target.sides, name)
        for side in target.sides:
            if not target.images(side):
                raise FileError(f"{dataset}: there are no images in {side}. Save the pairs first, or correct the name.")
        musubi.check_twins(target, recipe)
        folder = inside(target.folder, "training", OutputError)
        written = musubi.write_files(folder, made, overwrite)
        root = Path(folder_paths.get_output_directory()).resolve()
        files = [path.relative_to(root).as_posix() for path in written]
        hints = musubi.hints(recipe, machine)
        return io.NodeOutput("\n".join(files), ui=messages(report(Sentence("Written"), files, hints)))


def _widget(setting: dataclasses.Field[Any]) -> io.WidgetInput:
    """The widget of a training setting, with the default, text and limits from the library."""
    about = {"default": setting.default, "tooltip": setting.metadata["help"]}
    if setting.metadata.get("later"):
        about["optional"] = True
    limits = {key: setting.metadata[key] for key in ("min", "max", "step") if key in setting.metadata}
    if "choices" in setting.metadata:
        return io.Combo.Input(setting.name, options=list(setting.metadata["choices"]), **about)
    if isinstance(setting.default, bool):
        return io.Boolean.Input(setting.name, **about)
    if isinstance(setting.default, int):
        # A widget called seed would otherwise change after each run, and the two sides with it.
        return io.Int.Input(setting.name, control_after_generate=False, **about, **limits)
    if isinstance(setting.default, float) and setting.default >= 0.01:  # smaller ones are shown as 0 by some widgets
        return io.Float.Input(setting.name, **about, **limits)
    return io.String.Input(setting.name, **about | {"default": str(setting.default)})


def _values(kind: type[Training | Machine], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: _value(each, settings.get(each.name, each.default)) for each in dataclasses.fields(kind)}


def _value(setting: dataclasses.Field[Any], given: Any) -> Any:
    """A widget's value as the setting's type: a very small number comes as text."""
    try:
        kind: Any = type(setting.default)
        return kind(given)
    except ValueError:
        raise TrainingError(f"{setting.name} is {given!r}: write a number, such as {setting.default}.") from None


NODES = [ImageFolder, SavePair, CheckPairs, TrainingRecipe]
