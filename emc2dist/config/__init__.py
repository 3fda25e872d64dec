"""The spec of a run: one YAML file, strict, dumped resolved beside every run.

Precedence: default < file < `key=value` on the command line. Nothing is guessed: an unknown key, a wrong type or a
value out of range is a `SpecError` that names the key, the value, what is allowed, and the nearest valid key.

A value is read by what its key takes. Where that is text, it is what was written: `name: 007` and `name: no` need no
quotes, and after `key=` all counts, `#`, `:`, `{` and `~` too (a pair of quotes around the whole is taken off).
Elsewhere it is what YAML 1.2 reads: `010` is ten, `1e-4` a number, `1:30` is none. Nothing, `null`, `~` and `None` are
None where a key may be None; `off` and `yes` are no names there unless in quotes. A mapping for a section sets the keys
that it holds. A key that a file gives twice is refused; of several `key=value` for one key the last holds, and that is
said.

Unit and range stand under each field. Nothing here imports torch or ray, so `emc2dist validate` is instant.

    spec = load("jobs/cifar10.yaml", ["data.path=../shared/data/cifar10", "lr=1e-3"])
"""

from emc2dist.config import paths
from emc2dist.config.loading import (
    changed,
    dump,
    given_keys,
    is_key,
    load,
    load_job,
    load_sweep,
    parse,
    parse_s3,
    parse_sweep,
)
from emc2dist.config.pairs import Text
from emc2dist.config.paths import is_remote
from emc2dist.config.sections import (
    BUILT_IN,
    S3,
    Data,
    Encoder,
    Eval,
    Launch,
    Norm,
    Optimiser,
    Resources,
    Views,
    Watch,
)  # fmt: skip
from emc2dist.config.spec import OPERATIONAL, Spec, differences, leaves
from emc2dist.config.sweep import MOST_TRIALS, Range, Sweep, base_of

__all__ = [
    "BUILT_IN", "MOST_TRIALS", "OPERATIONAL", "S3", "Data", "Encoder", "Eval", "Launch", "Norm", "Optimiser", "Range",
    "Resources", "Spec", "Sweep", "Text", "Views", "Watch", "base_of", "changed", "differences", "dump", "given_keys",
    "is_key", "is_remote", "leaves", "load", "load_job", "load_sweep", "parse", "parse_s3", "parse_sweep", "paths",
]  # fmt: skip
