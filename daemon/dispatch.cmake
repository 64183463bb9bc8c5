# Source files of dispatch, relative to this folder.
set(KVPOOL_DISPATCH_SOURCES
    dispatch.c
    engine.c
    fdsock.c
    histogram.c
    groups.c
    job.c
    metrics.c
    observe.c
    ops_attn.c
    ops_fd.c
    ops_pool.c
    ops_seq.c
    ops_session.c
    ops_step.c
    order.c
    pipes.c
    pools.c
    presence.c
    region.c
    session.c
    session_access.c
    session_grace.c
    stats.c
    step_clock.c
    tensor.c
)
# What they link beside the packages of kvpool_daemon: sqrtf.
set(KVPOOL_DISPATCH_LIBS m)
