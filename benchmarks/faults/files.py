"""Hostile and messy files: photo folders, archives, own YAML, and damaged files of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.faults import photos, records
from benchmarks.faults.checks import Short, completed, refused, same, spoken
from benchmarks.faults.inputs import finished, left
from benchmarks.faults.kills import here
from benchmarks.faults.place import Place
from benchmarks.faults.races import half_way
from benchmarks.faults.variants import GLYPHS, MLP, SHORT, unbroken, words

SECONDS = 30.0
MEMORY = 2500.0  # MB
VARIANT = "fomaml"
PHOTOS = f"algo=maml data=folder data.size=12 data.ways=2 {MLP} train.tasks=2 {SHORT} train.steps=3"
OWN = ["", "\x00", "algo: [", "algo: 5\n", "algo:\n  _target_: nope.Nope\n", "defaults: [nope]\n", "- 1\n"]


def case(place: Place) -> list[Short]:
    """One line and exit code 2, or a run that is completed."""
    dice = place.random.random()
    if dice < 0.45:
        return hostile_photos(place)
    if dice < 0.57:
        return archives(place)
    if dice < 0.61:
        return own_yaml(place)
    return damaged(place)


def hostile_photos(place: Place) -> list[Short]:
    random = place.random
    root = place.folder / "photos"
    photos.good(root)
    inside = random.choice(sorted(root.iterdir()))
    for nasty in random.sample(photos.NASTY, random.choice((1, 1, 2, 3))):
        place.story.append(f"# {nasty.__name__} in {root}")
        try:
            nasty(root, inside, random)
        except OSError as error:  # one did what the next cannot live with
            place.story.append(f"#   not made: {error}")
    return answered(place, [*PHOTOS.split(), f"data.root={root}"], root)


def archives(place: Place) -> list[Short]:
    random = place.random
    root = place.folder / "archives"
    root.mkdir()
    if random.random() < 0.7:
        photos.omniglot(root, random, place.shared.once("zip bombs", photos.zip_bombs))
        command = f"algo=maml data=omniglot {MLP} train.tasks=2 {SHORT}"
    else:
        photos.mnist(root, random)
        command = f"algo=mtl data=mnist_tasks {MLP} {SHORT} test.adapt_steps=0"
    written = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    place.story.append(f"# in {root}: {', '.join(written)}")
    return answered(place, [*command.split(), f"data.root={root}"], root)


def own_yaml(place: Place) -> list[Short]:
    """A conf folder where one stands, with something else in it than YAML of a choice."""
    random = place.random
    conf = here(place) / "conf" / "algo"
    conf.mkdir(parents=True)
    content = random.choice((*OWN, random.randbytes(60).decode("latin-1")))
    (conf / "mine.yaml").write_bytes(content.encode("latin-1"))
    place.story.append(f"# conf/algo/mine.yaml: {content!r}")
    ended = place.run("algo=mine", *GLYPHS.split(), *MLP.split(), *SHORT.split(), seconds=SECONDS)
    return completed(ended) if ended.code == 0 else refused(ended)


def answered(place: Place, command: list[str], root: Path) -> list[Short]:
    """The hostile files were said or survived, and nothing is left of a refusal."""
    env = {"METARUN_CACHE": str(place.folder / "home" / "cache")}
    ended = place.run(*command, seconds=SECONDS, memory=MEMORY, env=env)
    aside = place.folder.with_name(f"{place.folder.name} aside")
    for path in (root, *root.iterdir()):
        if not path.is_symlink():
            path.chmod(0o755)
    root.rename(aside)  # it is not what the run left
    try:
        if ended.code == 0:
            return completed(ended) or finished(place.folder)
        return refused(ended) or left(place)
    finally:
        aside.rename(root)


def damaged(place: Place) -> list[Short]:
    """A run with damaged files: it goes on as if they were whole, or is refused with one line."""
    random = place.random
    reference, seconds = unbroken(place, VARIANT)
    run, canary = here(place) / "run", place.folder / "home" / "canary"
    done = random.random() < 0.3
    if done:
        shutil.copytree(reference, run)
    else:
        half_way(place, VARIANT, [*words(VARIANT), "hydra.run.dir=run"], seconds, run)
    told = records.damage(run, random, canary)
    place.story.append(f"# {told} in {run}")
    only_tests = random.random() < 0.4
    ended = place.run("resume=run", *(["test.only=true", "name=again"] * only_tests), seconds=SECONDS)
    short = refused(ended) if ended.code else spoken(ended)
    if not ended.code and not only_tests and f"last.pt: {records.TWIN}" not in told:  # which is to go on from the best
        short += same(run, reference, logged="metrics.jsonl" not in told)
    if canary.exists():
        short.append(Short("no code of a checkpoint that is run", "it was run"))
    report = place.run("report", "run", seconds=SECONDS)
    return short + (spoken(report) if report.code in (0, 2) else completed(report))
