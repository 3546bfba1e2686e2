"""What people type, or might: wrong and absurd values, words and flags."""

from __future__ import annotations

from random import Random
from typing import Any


def _listed(text: str) -> list[str]:
    """The parts between bars."""
    return [part.strip() for line in text.strip().splitlines() for part in line.split(" | ")]


HUGE = [str(n) for n in (2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**64 + 1, -(2**63) - 1, 10**12, 10**30)]
NOT_FINITE = ["nan", ".nan", "NaN", "inf", "-inf", ".inf", "1e999"]
NUMBERS = _listed("0 | -1 | 1 | 2 | 3 | -0.0 | 0.5 | 1.5 | 1e-300 | 1e-46 | 1e39 | 1e300 | 1e308 | -1e308 | 00 | 1e3")
ODD_NUMBERS = ["9" * 400, "0x10", "1_000", "5.0", "'5'", '"5"', "5s", "5 ", " 5", "1,5", "1e", "--5", "+5", "٣", "½"]
PLAIN = ["null", "true", "false", "yes", "none", "None", "''", '""', "", "' '", "abc", "default", "auto", "???"]
LISTS = ["[]", "[1]", "[0]", "[-1]", "[a,b]", "[null]", "[[]]", "[1,[2]]", "[1,2,3,4,5,6,7,8,9]", "[1e300]", "[true]"]
DICTS = ["{}", "{a:1}", "{1:2}", "{a:{b:[]}}", "{_target_:os.getcwd}", "{_target_:nope.Nope}", "{_partial_:true}"]
GRAMMAR = ["[1,", "{a:", "'open", "a=b", "a:b", "\\", "a\\,b", "(1)", "1,2", "range(1,3)", "choice(1,2)", "glob(*)"]
REFERENCES = _listed(
    "${seed} | ${nokey} | ${oc.env:NOPE} | ${train} | ${ | $(date) | ${now:%Y} | ${hydra:job.num} | ${algo.nope} | %s"
)
TEXTS = ["ü€😀", "\u202eabc", "a b", "a\nb", "a\tb", "\x1b[31mred", "\x07", "x" * 300, "x" * 5000, "é" * 200, "'a b'"]
PATHS = ["..", "../../x", "nope/nope", "/dev/null", "/dev/null/x", "/proc/x", "/etc/passwd", "~nobody-such", "a" * 260]
BYTES = ["\udcff", "a\udce9b"]  # as Python has words that are not UTF-8
KINDS = (HUGE, NOT_FINITE, NUMBERS, ODD_NUMBERS, PLAIN, LISTS, DICTS, GRAMMAR, REFERENCES, TEXTS, PATHS, BYTES)

TARGETS = _listed("""
    os.getcwd | torch.nn.BatchNorm2d | torch.nn.Linear | torch.optim.SGD | builtins.print | math.pi | pathlib.Path
    metarun.algos.maml.MAML | metarun.algos.mtl.MultiTask | metarun.backbones.cnn.CNN | metarun.data.glyphs.Glyphs
    metarun.optim.sam.SAM | metarun.optim.schedules.cosine | metarun.balance.famo.Famo | metarun.build.build
    nope.Nope | metarun.nope | metarun | null | 5 | a b | .. | os | torch.nn.functional.relu | x.x.x.x.x
""")

FLAGS = _listed("""
    -m | -r | -r -m | --run --multirun | --resolve | -sc | -sc install=bash | -sc query=bash | -sc install=nope
    --cfg | --cfg job | --cfg nope | --cfg hydra | --cfg all | -c job --resolve | -m --cfg job | -c job -p train
    --package | -p nope | -c job -p nope | --info | --info all | --info nope | -i config | --hydra-help | -h -m
    --config-name nope | --config-name | --config-name=config | --config-dir=/nonexist | --config-dir | -cd .
    --config-path nope | -cp /nonexist | --versoin | --version 5 | --help me | -x | -- | - | --- | -5 | -m -m
    --train.steps=5 | train.steps = 5 | train.steps =5 | train.steps= 5 | =5 | = | train.steps | train.steps:5
    report | reprot | report nope | help | help me | report --csv | report . --plot x.txt | train | run | resume
    resume= | resume=nope | resume=. | resume=/dev/null | test.only=true | resume=nope test.only=true | -m resume=.
    -m algo=maml,nope | -m seed=0,x | -m seed= | -m seed=range(2) | seed=0,1 | -m train.steps=1,abc
    hydra=5 | hydra=null | hydra.mode=nope | hydra.mode=MULTIRUN | hydra.job.chdir=true
    hydra/launcher=nope | hydra/sweeper=nope | hydra.sweeper.params.seed=1 | ++hydra.sweeper.params={seed:1}
    hydra.run.dir=/proc/x | hydra.run.dir=/dev/null | hydra.run.dir=null | hydra.run.dir='' | hydra.run.dir=[1]
    hydra.output_subdir=null | hydra.sweep.dir=/proc/x -m | hydra.nope=1 | hydra.job.name='' | hydra/job_logging=nope
    ~hydra | ~train | ~algo | ~nope | ~train.steps | ~data.ways | ~seed | ~optim.lr | ~backbone | ~ | + | ++
    +algo=maml | ++algo=maml | algo=maml algo=reptile | seed=1 seed=2 | +seed=1 | algo@data=maml | +data@algo=glyphs
    experiment=nope | +experiment=nope | pair=maml_sinusoid | experiment=null | experiment=[omniglot_lake,nope]
    -m algo=glob(nope*) | device.threads=100000
""")
ASKING = {"-sc", "--cfg", "-c", "--info", "-i", "--hydra-help", "--help", "-h", "--version", "help"}  # no run is wanted

ABSURD = _listed("""
    train.clip_norm=0 | train.clip_value=0 | optim.lr=nan | optim.lr=inf | ++optm.lr=5 | +foo=1
    schedule=cosine schedule.warmup=1000000 | name=../../x | ++trian.steps=5 | +algo.nope=1 | optim.lr=1e300
    train.clip_value=1e308 | seed=18446744073709551616 | test.data=5 | algo=null | data=null | backbone=null
    test.tasks=1000000000000 | val.tasks=1000000000000 | train.tasks=1000000000000 | train.max_time=abc | device=nope
    optim=adam optim.eps=inf | optim=adam optim.betas=[0.9] | val.seed=18446744073709551616
""")


def value(random: Random, key: str, others: list[Any]) -> str:
    """A value for this key, often a wrong one; `others` are the values of other keys."""
    if key.endswith("_target_"):
        return random.choice(TARGETS)
    if random.random() < 0.1:
        return spelled(random.choice(others))
    return random.choice(random.choice(KINDS))


def spelled(value: Any) -> str:
    """As it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace("'", "").replace(" ", "")


def misspelt(random: Random, key: str) -> str:
    """The key with a letter lost, doubled or changed, or in another section, or with odd signs."""
    place = random.randrange(len(key))
    before, letter, after = key[:place], key[place], key[place + 1 :]
    letters = (before + after, before + letter * 2 + after, f"{before}q{after}", key.upper())
    sections = (f"nope.{key}", f"{key}.nope", key.replace(".", "/"), key.replace(".", ".."), f"{key}s", f"_{key}")
    return random.choice((*letters, *sections))
