"""Bad input by the thousand: every case ends in one clear line or in the right result, never in anything else."""
