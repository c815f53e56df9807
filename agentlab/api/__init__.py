"""The contract between daemon and client; both sides import it and meet nowhere else."""
