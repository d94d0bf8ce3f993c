"""Power, energy, temperature and clocks as the device itself measures them.

Readers, each a module: `jetson` (INA3221 rails), `tegrastats`, `nvml` (NVIDIA GPUs), `rapl` (x86 packages). Heat and
clocks of the rest of the machine come from `sysfs`. `choose.open_readers` takes those that this machine has.
"""
