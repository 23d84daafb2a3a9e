"""The whole platform as users meet it: commands as processes, HTTP from outside, real environments."""
