"""What ``@fal.endpoint(billing=...)`` takes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class BillingDeclaration(Protocol):
    """Anything that can say what an endpoint bills; accepted, as nobody is billed here."""

    def declaration(self) -> dict[str, Any]:
        """The billable parts."""
        ...
