"""What of metro-edge works on this machine, what is missing, and the line that installs it."""

from __future__ import annotations

from metro_edge.doctor.report import NEEDS as NEEDS
from metro_edge.doctor.report import Part as Part
from metro_edge.doctor.report import Report as Report
from metro_edge.doctor.report import examine as examine
from metro_edge.doctor.report import text_of as text_of
