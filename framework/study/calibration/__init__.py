"""From measured operator times to a calibration of the simulator: reading tables, fitting, judging."""
