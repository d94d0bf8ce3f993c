from enum import IntEnum

class QoSHistoryPolicy(IntEnum):
    KEEP_LAST = 1

class QoSReliabilityPolicy(IntEnum):
    RELIABLE = 1
    BEST_EFFORT = 2

class QoSProfile:
    def __init__(
        self,
        history: QoSHistoryPolicy | int | None = None,
        depth: int | None = None,
        reliability: QoSReliabilityPolicy | int | None = None,
    ) -> None: ...
