"""From official files to batches: formats -> pack -> manifest -> assign, order -> reader, decode -> stream."""
