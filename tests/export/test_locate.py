"""What `export` takes beside a plain directory: hub ids, adapters, pickles, shards, bf16, foreign families."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import SmolVLMForConditionalGeneration

from edgemm.errors import CheckpointError
from edgemm.export.locate import located
from edgemm.export.pipeline import export
from edgemm.model import load
from tests.export.exported import checkpoint, model, picture

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

QUESTION = "What is in the picture?"


def _original(path, **settings):
    return SmolVLMForConditionalGeneration.from_pretrained(path, dtype=torch.float32, **settings).eval()


def _logits(bundle):
    with load(bundle, runtime="onnxruntime") as one:
        return one.task("answer").logits([picture(40, 40)], QUESTION)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local cache of the hub with one model in it."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    model_home = home / "models--robots--smolvlm-tiny"
    shutil.copytree(checkpoint("smolvlm"), model_home / "snapshots" / "abc123")
    (model_home / "refs").mkdir()
    (model_home / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    return model_home


def test_a_hub_id_is_read_from_the_local_cache(hub):
    with located("robots/smolvlm-tiny") as path:
        assert path == hub / "snapshots" / "abc123"


def test_a_hub_id_that_is_nowhere(hub):
    with pytest.raises(CheckpointError, match="neither a directory nor in the hub's local cache"), located("robots/no"):
        pass


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter of the tiny SmolVLM, with weights that matter, and what it says once merged."""
    path = tmp_path_factory.mktemp("lora") / "adapter"
    torch.manual_seed(5)
    base = _original(checkpoint("smolvlm"))
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=r".*text_model.*\.(q|v)_proj", init_lora_weights=False))
    tuned.save_pretrained(path)
    settings = json.loads((path / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(checkpoint("smolvlm"))
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path, tuned.merge_and_unload().state_dict()


def test_an_adapter_is_merged_before_export(adapter, tmp_path):
    path, merged = adapter
    with located(path) as found:
        weights = load_file(found / "model.safetensors")
        assert (found / "tokenizer.json").is_file()
        name = "model.text_model.layers.1.self_attn.v_proj.weight"
        torch.testing.assert_close(weights[name], merged[name])
        assert not torch.equal(weights[name], load_file(checkpoint("smolvlm") / "model.safetensors")[name])
        scratch = found
    assert not scratch.exists()
    report = export(path, tmp_path / "b")
    assert report.manifest.source.id == "adapter"
    base = model("smolvlm", "onnxruntime")
    before = base.task("answer").logits([picture(40, 40)], QUESTION)
    assert abs(_logits(report.bundle) - before).max() > 1e-2


def test_an_adapter_of_another_model(adapter, tmp_path):
    path = shutil.copytree(adapter[0], tmp_path / "other")
    settings = json.loads((path / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(checkpoint("whisper"))
    (path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="does not fit"), located(path):
        pass


def test_a_pickle_only_with_its_flag(tmp_path):
    path = shutil.copytree(checkpoint("smolvlm"), tmp_path / "pickled")
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only as a pickle"):
        export(path, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with located(path, allow_pickle=True) as found:
        torch.testing.assert_close(load_file(found / "model.safetensors"), weights)


class _Harm:
    def __reduce__(self):
        return print, ("code of the pickle ran",)


def test_a_pickle_that_runs_code_is_refused_with_the_flag_too(tmp_path, capsys):
    path = shutil.copytree(checkpoint("smolvlm"), tmp_path / "pickled")
    (path / "model.safetensors").unlink()
    torch.save({"x": _Harm()}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than weights"), located(path, allow_pickle=True):
        pass
    assert "ran" not in capsys.readouterr().out


def test_shards_and_bf16_are_exported_as_they_are(tmp_path):
    path = shutil.copytree(checkpoint("smolvlm"), tmp_path / "sharded")
    (path / "model.safetensors").unlink()
    half = SmolVLMForConditionalGeneration.from_pretrained(checkpoint("smolvlm"), dtype=torch.bfloat16)
    half.save_pretrained(path, max_shard_size="100KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    report = export(path, tmp_path / "b")
    assert report.checkpoint_bytes_fp32 == 4 * sum(p.numel() for p in half.parameters())
    assert report.manifest.checks.tokens_equal == {"main": 1.0}


def test_a_missing_shard_is_named(tmp_path):
    path = shutil.copytree(checkpoint("smolvlm"), tmp_path / "sharded")
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({n: weights[n] for n in held}, path / file)
    index = {"metadata": {}, "weight_map": {n: file for file, held in parts.items() for n in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002-of-00002"):
        export(path, tmp_path / "b")


_FAMILY = """
from edgemm.export.families import efficientnet_lite0

MODEL_TYPE = "my-tagger"
TASKS = ("classify",)
NEEDS = {"picture network": ("_conv_stem.",)}
plan = efficientnet_lite0.plan
"""


def test_a_family_of_another_package(tmp_path):
    """Installed by pip, found by its entry point, exported by the command line."""
    wheel, site = tmp_path / "my_families-1.0-py3-none-any.whl", tmp_path / "site"
    info = "my_families-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("my_families/__init__.py", "")
        files.writestr("my_families/my_tagger.py", _FAMILY)
        files.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my-families\nVersion: 1.0\n")
        files.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        files.writestr(f"{info}/entry_points.txt", "[edgemm.families]\nmy-tagger = my_families.my_tagger\n")
        files.writestr(f"{info}/RECORD", "")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    path = shutil.copytree(checkpoint("efficientnet"), tmp_path / "checkpoint")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "my-tagger"}))
    code = "from edgemm.cli.app import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "export", str(path), "-o", str(tmp_path / "b"), "--json"],
        env={"PYTHONPATH": f"{site}:{':'.join(sys.path)}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["components"][0]["name"] == "model"
    with pytest.raises(CheckpointError, match="my-tagger"):
        export(path, tmp_path / "c")
