"""Apps of which each wants most of the machine."""

import fal


class Wide(fal.App, keep_alive=300):
    machine_type = "XL"

    @fal.endpoint("/")
    def run(self) -> dict[str, str]:
        return {}


class Next(fal.App, keep_alive=300):
    machine_type = "XL"

    @fal.endpoint("/")
    def run(self) -> dict[str, str]:
        return {}
