"""What `precision = "auto"` is on a machine, and that an output keeps the one it was begun with."""

import json

import pytest
import torch
from recording import RecordingReporter
from safetensors.torch import load_file
from stopping import StopAt
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.models import device
from microbert_cli.models.device import Precision, bfloat16_by, choose_precision
from microbert_cli.reporter import SILENT
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.output_dir import BEGUN
from microbert_cli.signals import Interrupted

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.fixture
def processor(monkeypatch):
    """Makes this process believe in a processor with such instructions."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)

    def believe(*, avx512_bf16=False, amx=False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return believe


@pytest.mark.parametrize(
    ("instructions", "by", "precision"),
    [
        ({}, "", "fp32"),
        ({"avx512_bf16": True}, "this processor (AVX-512 BF16)", "bf16"),
        ({"amx": True, "avx512_bf16": True}, "this processor (AMX)", "bf16"),
    ],
)
def test_auto_asks_the_processor(processor, instructions, by, precision):
    processor(**instructions)
    assert bfloat16_by("cpu") == by
    assert choose_precision("cpu") == Precision(precision, False, "cpu")


def test_who_says_a_precision_gets_it(processor):
    processor(avx512_bf16=True)
    assert choose_precision("cpu", precision="fp32").precision == "fp32"
    processor()
    assert choose_precision("cpu", precision="bf16").precision == "bf16"


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    ("limit", "precision"),
    [
        ("AVX512_CORE", "fp32"),
        ("avx2_vnni_2", "fp32"),
        ("AVX512_CORE_BF16", "bf16"),
        ("avx512_core_amx", "bf16"),
        ("ALL", "bf16"),
    ],
)
def test_a_processor_that_onednn_is_kept_from(processor, monkeypatch, name, limit, precision):
    processor(avx512_bf16=True)
    monkeypatch.setenv(name, limit)
    assert choose_precision("cpu").precision == precision


def test_auto_is_float32_on_devices_that_nobody_asked():
    assert bfloat16_by("meta") == ""
    assert choose_precision("meta").precision == "fp32"


# An output keeps the precision it was begun with


def precision_of(reporter):
    (line,) = [text for text in reporter.notes if text.startswith("precision: ")]
    return line.removeprefix("precision: ")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_bert("base")
        tiny_glue("glue", ["sst2"], rows=32)
        yield folder


@pytest.fixture
def machine(place, monkeypatch):
    """Puts the command onto a machine with or without bfloat16 products."""
    monkeypatch.chdir(place)

    def put(has):
        monkeypatch.setattr(device, "bfloat16_by", lambda _: "this GPU" if has else "")
        monkeypatch.setattr(device, "auto_precision", lambda _: "bf16" if has else "fp32")

    return put


def finetune(out, reporter=SILENT, **changed):
    table = {"finetune__steps": 6, "finetune__batch_size": 8, "finetune__evaluations": 2}
    return api.finetune(model="base", out=out, task="sst2", data__folder="glue", reporter=reporter, **table, **changed)


def weights(out):
    return load_file(out / "model.safetensors")


def equal(first, second):
    return all(torch.equal(weights(first)[name], weights(second)[name]) for name in weights(first))


def stopped(out, has, machine):
    machine(has)
    with pytest.raises(Interrupted):
        finetune(out, StopAt(("finetune", 3)))


@pytest.mark.parametrize(("begun", "later"), [(True, False), (False, True)])
def test_another_machine_goes_on_in_the_precision_of_the_first(machine, tmp_path, begun, later):
    machine(begun)
    whole = RecordingReporter()
    finetune(tmp_path / "whole", whole)
    stopped(tmp_path / "parts", begun, machine)
    machine(later)
    resumed = RecordingReporter()
    finetune(tmp_path / "parts", resumed)
    assert equal(tmp_path / "whole", tmp_path / "parts")
    title, other = ("bfloat16", "float32") if begun else ("float32", "bfloat16")
    assert precision_of(resumed) == f"{title}, as this was begun, where a new run would take {other}"
    expected = "which this GPU multiplies in" if begun else "since nothing here multiplies in bfloat16"
    assert precision_of(whole) == f"{title}, {expected}"
    for name in ("whole", "parts"):
        record = manifest.read(tmp_path / name)
        assert record["precision"] == ("bf16" if begun else "fp32")
        assert record["identity"]["recipe"]["precision"] == "auto"


def test_both_precisions_train_other_weights_and_a_finished_output_stays(machine, tmp_path):
    machine(True)
    finetune(tmp_path / "bfloat16")
    machine(False)
    finetune(tmp_path / "float32")
    assert not equal(tmp_path / "bfloat16", tmp_path / "float32")
    again = RecordingReporter()
    assert finetune(tmp_path / "bfloat16", again).up_to_date
    assert not [text for text in again.notes if text.startswith("precision")]


def test_work_of_a_version_that_recorded_nothing_is_float32(machine, tmp_path):
    stopped(tmp_path / "old", False, machine)
    begun = tmp_path / "old.partial" / BEGUN
    start = atomic.load_with_checksum(begun.read_text())
    assert start.pop("facts") == {"precision": "fp32"}
    begun.write_text(atomic.dump_with_checksum(start))
    machine(True)
    reporter = RecordingReporter()
    finetune(tmp_path / "old", reporter)
    assert precision_of(reporter).startswith("float32, as this was begun")
    assert manifest.read(tmp_path / "old")["precision"] == "fp32"


def test_a_processor_that_multiplies_in_bfloat16_is_named(processor, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    processor(avx512_bf16=True)
    reporter = RecordingReporter()
    finetune(tmp_path / "out", reporter)
    assert precision_of(reporter) == "bfloat16, which this processor (AVX-512 BF16) multiplies in"
    assert manifest.read(tmp_path / "out")["precision"] == "bf16"


def test_a_recipe_that_says_it(machine, tmp_path):
    machine(False)
    reporter = RecordingReporter()
    finetune(tmp_path / "out", reporter, precision="bf16")
    assert precision_of(reporter) == "bfloat16, as the recipe says"
    record = manifest.read(tmp_path / "out")
    assert (record["precision"], record["identity"]["recipe"]["precision"]) == ("bf16", "bf16")
    assert "precision" not in json.loads((tmp_path / "out" / "metrics.json").read_text())
