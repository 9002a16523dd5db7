def write_stream_report(*a, **k):
    raise NotImplementedError
