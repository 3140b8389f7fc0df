"""Frambicus's data, made from a seed: composed pictures, motion clips and spoken questions, with what is true of them.

A library and no recipe: training reads scenes straight from here and its report carries the configuration's hash. What
has to be downloaded (sprites, their names, photographs) is put into a folder by `samples/recipes/frambicus_assets.py`.

    assets = load_assets("assets")
    example = compose(ScenesConfig(), assets, "train", 7)      # the same picture on every machine
    write_scenes("scenes", assets, ScenesConfig(), {"train": 40_000, "test": 2_000})
"""

from edgemm.export.frambicus.scenes.assets import Assets, Sprite, load_assets
from edgemm.export.frambicus.scenes.compose import Scene, Thing, compose
from edgemm.export.frambicus.scenes.config import ScenesConfig
from edgemm.export.frambicus.scenes.dataset import write_catalogue, write_clips, write_scenes, write_spoken
from edgemm.export.frambicus.scenes.motion import Clip, film
from edgemm.export.frambicus.scenes.questions import Asked, questions

__all__ = [
    "Asked",
    "Assets",
    "Clip",
    "Scene",
    "ScenesConfig",
    "Sprite",
    "Thing",
    "compose",
    "film",
    "load_assets",
    "questions",
    "write_catalogue",
    "write_clips",
    "write_scenes",
    "write_spoken",
]
