"""What corrections and large batches do to trainings: experiments, not timings."""
