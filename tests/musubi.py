"""Runs inside a musubi-tuner checkout: what its own code makes of a recipe. Reads a task from stdin, answers on stdout.

{"flags": true}                        -> {"version", "scripts": {script: {flag: {…}}}}
{"commands": [[script, words]], "datasets": [toml], "optimizer": words} -> what was parsed, found and built
"""

import argparse
import contextlib
import importlib
import json
import sys
from pathlib import Path

import toml
import torch

ROOT = Path(sys.argv[1])
PARSERS = {
    "wan_cache_latents.py": ("musubi_tuner.cache_latents", "musubi_tuner.wan_cache_latents"),
    "wan_cache_text_encoder_outputs.py": (
        "musubi_tuner.cache_text_encoder_outputs",
        "musubi_tuner.wan_cache_text_encoder_outputs",
    ),
    "wan_train_network.py": ("musubi_tuner.training.parser_common", "musubi_tuner.wan_train_network"),
}


def parser_of(script: str) -> argparse.ArgumentParser:
    """Built as the script's own main() builds it."""
    common, wan = (importlib.import_module(name) for name in PARSERS[script])
    return wan.wan_setup_parser(common.setup_parser_common())


def flags() -> dict:
    scripts = {}
    for script in PARSERS:
        scripts[script] = {
            flag: {
                "takes": 0 if action.nargs == 0 else action.nargs or 1,
                "required": action.required,
                "choices": sorted(action.choices) if action.choices else None,
            }
            for action in parser_of(script)._actions
            for flag in action.option_strings
            if flag.startswith("--") and flag != "--help"
        }
    return {"version": toml.load(ROOT / "pyproject.toml")["project"]["version"], "scripts": scripts}


def parse(script: str, words: list[str]) -> dict:
    return {key: str(value) for key, value in vars(parser_of(script).parse_args(words)).items()}


def dataset(file: str) -> list[dict]:
    from musubi_tuner.dataset import config_utils
    from musubi_tuner.dataset.architectures import ARCHITECTURE_WAN

    config = config_utils.load_user_config(file)
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(config, argparse.Namespace(debug_dataset=False), architecture=ARCHITECTURE_WAN)
    group = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    answer = []
    for each in group.datasets:
        source = each.datasource
        paths = getattr(source, "image_paths", None) or getattr(source, "video_paths", [])
        captions = [source.get_caption(index)[1] for index in range(len(source))]
        answer.append({**each.get_metadata(), "files": [Path(path).name for path in paths], "captions": captions})
    return answer


def optimizer(words: list[str]) -> str:
    from musubi_tuner.training.trainer_base import NetworkTrainer

    arguments = parser_of("wan_train_network.py").parse_args(words)
    # Only get_optimizer is wanted: no model, no accelerator.
    built = NetworkTrainer.get_optimizer(
        NetworkTrainer.__new__(NetworkTrainer), arguments, [torch.nn.Parameter(torch.zeros(2, 2))]
    )
    return f"{type(built[2]).__module__}.{type(built[2]).__name__} lr={built[2].param_groups[0]['lr']}"


def main() -> None:
    task = json.load(sys.stdin)
    # Without a GPU musubi-tuner cannot even be imported: its text encoder's signature asks for the current one.
    torch.cuda.current_device = lambda: 0
    with contextlib.redirect_stdout(sys.stderr):
        if task.get("flags"):
            answer = flags()
        else:
            answer = {
                "parsed": [parse(script, words) for script, words in task["commands"]],
                "datasets": [dataset(file) for file in task["datasets"]],
                "optimizer": optimizer(task["optimizer"]) if task.get("optimizer") else None,
            }
    json.dump(answer, sys.stdout)


main()
