"""`plan --store` gives the plan of the cache for shards in a store."""

import io
import json
import tarfile

import numpy as np
import pytest

pytest.importorskip("pydantic")

from pycooldown import DomainBatchSampler
from pycooldown.data.byte_ranges import Spans
from pycooldown.data.stores import StoredObject
from pycooldown.data.token_shard_writer import write_token_shard
from pycooldown.recipes.loading import recipe_of
from pycooldown.recipes.planning import build_schedule
from pycooldown.recipes.store_plan import parse_bytes, plan_store, to_dict

SHARD_SIZES = {"en": [500, 500, 130], "de": [200, 40]}
SIZES = {"en": 1_130, "de": 240}


class Shards:
    """Samples of 1,000 bytes that lie end to end."""

    def __init__(self):
        self.shard_sizes = SHARD_SIZES
        self.sizes = SIZES
        counts = [count for shards in self.shard_sizes.values() for count in shards]
        self.objects = [StoredObject(f"s3://b/{i}", count * 1_000, "v") for i, count in enumerate(counts)]
        self.firsts = np.cumsum([0, *counts])

    def locate(self, indices):
        objects = np.searchsorted(self.firsts, indices, "right") - 1
        starts = (np.asarray(indices) - self.firsts[objects]) * 1_000
        return Spans(objects, starts, starts + 1_000)


@pytest.fixture
def recipe():
    values = {
        "data": {"path": "."},
        "mixture": {"method": "temperature", "tau": 5},
        "training": {"steps": 60, "batch_size": 30},
    }
    return recipe_of(values, "test", [])


def test_the_plan_of_a_recipe(recipe):
    plan = plan_store(recipe, Shards(), block=16, group=4)
    assert [found.limit for found in plan.forecasts] == [137_000, 342_500, 685_000]
    assert plan.data_bytes == 1_370_000
    assert plan.steps == 60
    ratios = [found.bytes_fetched / found.bytes_used for found in plan.forecasts]
    assert ratios == sorted(ratios, reverse=True)
    sampler = DomainBatchSampler(build_schedule(recipe, SIZES), batch_size=30, seed=0, num_steps=60)
    distinct = np.minimum(sampler.exposure().draws, list(SIZES.values())).sum() * 1_000
    assert abs(plan.forecasts[0].bytes_used - distinct) <= 5  # draws are rounded for each block
    enough = plan_store(recipe, Shards(), block=16, group=4, limits=[plan.smallest_limit], depth=342_500 // 10)
    assert enough.forecasts[0].requests <= sum(-(-n // 16) for shards in SHARD_SIZES.values() for n in shards)
    json.dumps(to_dict(plan))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1000", 1000), ("200GB", 200 * 10**9), ("1.5 TiB", 3 * 2**39), ("64k", 64_000), ("3MiB", 3 * 2**20), ("7b", 7)],
)
def test_sizes_with_units(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1XB", "1e9"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="expected a number of bytes"):
        parse_bytes(text)


def test_the_command_prints_the_plan_of_the_cache(tmp_path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from pycooldown import cli

    for domain, count in (("en", 90), ("de", 30)):
        with tarfile.open(tmp_path / f"{domain}.tar", "w") as tar:
            for i in range(count):
                info = tarfile.TarInfo(f"{i:03d}.txt")
                info.size = 600
                tar.addfile(info, io.BytesIO(bytes(600)))
    command = ["plan", "--method", "temperature tau=2", "--steps", "20", "--batch-size", "8"]
    store = ["--block=8", *(f"--store={domain}={tmp_path / domain}.tar" for domain in ("en", "de"))]
    found = CliRunner().invoke(cli.app, [*command, *store, "--cache", "50kB", "--cache", "1MB"])
    assert found.exit_code == 0, found.output
    assert "The smallest cache at which nothing is fetched twice" in found.output
    found = CliRunner().invoke(cli.app, [*command, *store, "--cache", "1MB", "--json"])
    stores = json.loads(found.output)["stores"]["temperature tau=2"]
    assert stores["forecasts"][0]["limit"] == 10**6
    assert stores["forecasts"][0]["requests"] <= 16
    ids = [np.arange(9, dtype=np.uint16)]
    write_token_shard(tmp_path / "tokens.tar", ids, 100)
    with pytest.raises(ValueError, match=r"tokens\.tar holds tokens, .* --store needs shards of samples"):
        CliRunner().invoke(cli.app, [*command, f"--store=en={tmp_path / 'tokens.tar'}"], catch_exceptions=False)
    useless = [["--cache=1MB"], ["--depth=1MB"], ["--block=8"], ["--group=4"], ["--prefetched=2"]]
    for wrong in (*useless, [*store, "--size", "en=5"]):
        with pytest.raises(ValueError, match="--store"):
            CliRunner().invoke(cli.app, [*command, *wrong], catch_exceptions=False)
