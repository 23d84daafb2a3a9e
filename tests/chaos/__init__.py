"""Process chaos: the real platform's processes are killed and frozen while requests run, and a ledger outside Redis
tells whether a promise was broken.

``app`` is what is deployed, ``traffic`` plays the callers, ``havoc`` the bad day, ``ledger`` remembers, ``watch`` looks
into Redis while it happens, ``verdict`` counts; ``driver`` puts them together. ``python -m tests.chaos`` makes one run,
``python -m tests.chaos.soak --minutes N`` many.
"""
