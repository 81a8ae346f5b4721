"""Numbers with bounds, as annotations of the parameters that a config sets.

``research.config`` checks them before anything is built; constructors do not check them again.
"""

import math
from typing import Annotated, TypeAlias

from annotated_types import Ge, Gt, Interval

PositiveInt: TypeAlias = Annotated[int, Ge(1)]
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
PositiveFloat: TypeAlias = Annotated[float, Gt(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Ge(0)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction: TypeAlias = Annotated[float, Interval(gt=0, le=1)]
OpenFraction: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]
Decay: TypeAlias = OpenFraction
Seed: TypeAlias = Annotated[int, Interval(ge=0, le=2**63 - 1)]
FractionBelowOne: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
FiniteFloat: TypeAlias = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
