"""One engine for scored rows, however they come: sorted into runs, counted range by range, put together exactly."""
