"""How our estimators fit scikit-learn: its bases with types, and constructors that it can read."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class ClassifierMixin:
        """See `sklearn.base.ClassifierMixin`."""

    class BaseEstimator:
        """See `sklearn.base.BaseEstimator`."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the constructor's parameters."""
            raise NotImplementedError

else:
    from sklearn.base import BaseEstimator, ClassifierMixin

__all__ = ["BaseEstimator", "ClassifierMixin", "complete_signature"]


def complete_signature(cls: type) -> None:
    """Let a constructor with `**common` show the parents' keywords: scikit-learn looks for parameters there."""
    init: Any = cls.__dict__.get("__init__")
    own = list(inspect.signature(init).parameters.values()) if init is not None else []
    if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
        names = {parameter.name for parameter in own}
        common = inspect.signature(cls.__mro__[1]).parameters
        extra = [parameter for name, parameter in common.items() if name not in names]
        init.__signature__ = inspect.Signature([*own[:-1], *extra])
