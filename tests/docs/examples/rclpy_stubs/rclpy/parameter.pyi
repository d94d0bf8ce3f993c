from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")

class Parameter(Generic[ValueT]):
    @property
    def value(self) -> ValueT: ...
