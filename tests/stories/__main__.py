"""`python -m tests.stories 02 05` executes these notebooks again, at full size, and stores their outputs."""

import sys

from tests.stories.notebooks import NOTEBOOKS, store

for wanted in sys.argv[1:]:
    for chosen in [path for path in NOTEBOOKS if path.stem.startswith(wanted)]:
        store(chosen)
