"""Do the tests bite? Each guard of the Lua verbs is taken out in turn, in a copy, and a test has to turn red.

``guards`` is the list, ``__main__`` the check (``python -m tests.mutations``).
"""
