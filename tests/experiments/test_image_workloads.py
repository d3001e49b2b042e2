"""Studies with images in their prompts: what a simulated device does with them is what a real one does."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.serve_job import serve
from framework.build import input_processor
from framework.config import CacheConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.models.read import read_model
from framework.study.compose import LoadConfig, ServeConfig
from framework.study.load.config import HttpConfig
from framework.study.load.run import load
from framework.study.report import format_metrics
from framework.study.results import REQUESTS_FILE, collect, collect_requests, write_requests, write_run
from framework.study.workload import Pictures, SentPictures, Workload, WorkloadConfig

from ..framework.multimodal.checkpoints import make_without_weights

WORKLOAD = WorkloadConfig(
    num_requests=24,
    prompt_tokens=20,
    output_tokens=4,
    num_images=2,
    image_width=40,
    image_height=30,
    image_spread=0.2,
    num_distinct_images=6,
)


@pytest.fixture(scope="module", params=["llava", "qwen2_vl", "mllama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp(request.param)
    make_without_weights(request.param, found)
    return found


def config(folder: Path, kind: str, **workload: Any) -> ServeConfig:
    return ServeConfig(
        model=ModelConfig(str(folder), dtype="float32", load_format="dummy"),
        cache=CacheConfig(4, num_blocks=400, prefix_caching=False),
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, encoder_cache=60, in_flight_steps=1),
        executor=ExecutorConfig(kind),
        workload=replace(WORKLOAD, **workload),
        num_warmup_requests=0,
    )


def test_a_simulated_device_encodes_what_a_real_one_does(folder: Path, tmp_path: Path) -> None:
    found = {kind: serve(config(folder, kind)) for kind in ("local", "simulated")}
    records = {kind: served.record for kind, served in found.items()}
    totals = {
        kind: (record.num_image_queries, record.num_image_hits, record.num_images_encoded) for kind, record in records.items()
    }
    assert totals["local"] == totals["simulated"] and totals["local"][0] == 48 and 0 < totals["local"][1] < 42
    sizes = {
        kind: [(r.num_prompt_tokens, r.num_images, r.num_image_tokens) for r in record.requests] for kind, record in records.items()
    }
    assert sizes["local"] == sizes["simulated"]
    least = 2 if folder.name.startswith("mllama") else 12  # of two images, for each of which one token stands
    assert all(least <= num_image_tokens < num_prompt_tokens for num_prompt_tokens, _, num_image_tokens in sizes["local"])
    write_run(tmp_path, {"status": "ok", "error": None})
    write_requests(tmp_path, records["local"].requests)
    table = collect_requests(tmp_path, collect(tmp_path))
    assert (table["num_images"] == 2).all()
    assert table["num_image_tokens"].tolist() == [r.num_image_tokens for r in records["local"].requests]
    metrics = found["simulated"].metrics(config(folder, "simulated"))
    assert metrics["num_images"] == 48 and metrics["images_per_s"] == pytest.approx(2 * metrics["requests_per_s"])
    assert metrics["encoder_hit_rate"] == totals["local"][1] / 48
    assert f"48 in prompts, {metrics['images_per_s']:.2f} images/s, {totals['local'][2]} encoded" in format_metrics(metrics)
    lines = (tmp_path / REQUESTS_FILE).read_text().splitlines()
    head = lines[0].split(",")
    keep = [place for place, name in enumerate(head) if not name.startswith("num_image")]
    older = [",".join(line.split(",")[place] for place in keep) for line in lines]
    (tmp_path / REQUESTS_FILE).write_text("\n".join(older) + "\n")
    assert len(collect_requests(tmp_path, collect(tmp_path))) == 24, "older files have no such columns"


@pytest.mark.parametrize(
    ("workload", "error"),
    [
        (
            {"num_images": 200},
            "workload.num_images(=200 of 32 x 24 pixels cannot work: they| asks for 200 images, but this engine)",
        ),
        (
            {"image_width": 3000, "image_height": 2},
            "workload.image_width, image_height and image_spread cannot work: an image of 2400 x 2",
        ),
        ({"image_spread": 0.99, "image_width": 700}, "image_spread cannot work: an image of 1393 x 1 "),
        ({"image_spread": 0.99, "image_height": 1300}, "image_spread cannot work: an image of 1 x 2587 "),
        ({"image_spread": 1.0, "image_width": 10**6, "image_height": 10**6}, "image_spread cannot work: an image of 1 x 2000000 "),
        ({"image_spread": 0.5, "image_width": 9000, "image_height": 9000}, "image_spread cannot work: an image of 13500 x 13500 "),
        ({"num_distinct_images": 1 << 70}, "workload.num_distinct_images="),
        ({"image_width": 0}, "workload.image_width=0"),
        ({"num_distinct_images": 0}, "workload.num_distinct_images=0"),
    ],
)
def test_images_that_no_request_could_have_are_refused_before_anything_runs(
    folder: Path, workload: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        serve(config(folder, "simulated", **workload))


def test_a_server_is_shown_what_an_engine_in_process_is(folder: Path) -> None:
    """The same pixels between the same tokens."""
    given = config(folder, "local")
    info = read_model(given.model)
    inputs = input_processor(given.model, info, given)
    places = inputs.image_prompts
    assert places is not None
    ours = Workload(given.workload, 200, None, Pictures.of(given.workload, inputs, info.max_model_len))
    sent = Workload(given.workload, 200, None, SentPictures(given.workload))
    starts = set()
    for mine, theirs in zip(ours, sent, strict=True):
        tokens = list(theirs.prompt_token_ids)
        for image in reversed(theirs.sent_images):
            tokens.insert(image.start, places.placeholder_id)
            starts.add(image.start)
        files = [base64.b64decode(image.url.removeprefix("data:image/png;base64,")) for image in theirs.sent_images]
        prompt, images = places.of_tokens(tokens, [Image.open(io.BytesIO(file)) for file in files])
        assert prompt == mine.prompt_token_ids and [image.key for image in images] == [image.key for image in mine.images]
        assert theirs.images == () and mine.sent_images == ()
    assert len(starts) > 5


def test_a_prompt_that_is_no_chat_has_no_images() -> None:
    with pytest.raises(ValueError, match=r"workload\.num_images=2 cannot work: .* with http.endpoint of a chat"):
        load(LoadConfig(workload=WORKLOAD, http=HttpConfig()), 200, None)


def test_a_model_of_text_is_shown_no_images() -> None:
    asked = ServeConfig(workload=replace(WORKLOAD), cache=CacheConfig(num_blocks=400), executor=ExecutorConfig("null"))
    with pytest.raises(ValueError, match=r"workload\.num_images=2 cannot work: the model reads text alone"):
        serve(asked)
