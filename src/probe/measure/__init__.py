"""``probe bench``: timing runs beside the physical limit.

::

    command -> Session:  look (NVML, busy?) -> programs, each in worker children -> limits, comparison -> report
                                                  |
                              startup, checks     |  in processes of their own
                              matmul, memory, host,|  forked from one that has imported torch;
                              peer, collective    |  a rank for each GPU where they talk to each other

`programs/` holds what runs in those children, under the interpreter that has torch; everything else here runs in
probe's own process and never imports torch.
"""
