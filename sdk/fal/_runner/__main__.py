"""``python -m fal._runner --fd N``: runs one app; ``N`` is the inherited end of a socketpair to the supervisor.

With ``--zygote`` it runs none, but forks those that do (see ``zygote``).
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sdk = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if sys.path[:1] == [os.getcwd()] != [sdk]:
        # `-m` puts the working directory first; a file called socket.py there must not reach this process's start.
        del sys.path[0]
    from fal._runner.process import main

    main(sys.argv[1:])
