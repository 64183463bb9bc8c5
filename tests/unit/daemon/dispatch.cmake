# Tests of dispatch and what it is made of. They bring their own double of the NNG server.
kvpool_test(test_tensor unit SOURCES test_tensor.c LIBS kvpool_daemon)
kvpool_test(test_order unit SOURCES test_order.c LIBS kvpool_daemon)
kvpool_test(test_engine unit SOURCES test_engine.c engine_rig.c LIBS kvpool_daemon)
kvpool_test(test_metrics unit SOURCES test_metrics.c promcheck.c LIBS kvpool_daemon
    ARGS ${PROJECT_SOURCE_DIR}/docs)
kvpool_test(test_http unit SOURCES test_http.c httpget.c LIBS kvpool_daemon)
kvpool_test(test_histogram unit SOURCES test_histogram.c LIBS kvpool_daemon)
kvpool_test(test_fdsock unit SOURCES test_fdsock.c LIBS kvpool_daemon)
# What counts allocations on the loop thread, see fixture.c.
set(dispatch_wrap LINKER:--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=reallocarray)
foreach(name test_grace test_session test_tenants test_requests test_dispatch test_layers)
    kvpool_test(${name} unit SOURCES ${name}.c fixture.c LIBS kvpool_daemon)
    target_link_options(${name} PRIVATE ${dispatch_wrap})
endforeach()
target_sources(test_grace PRIVATE resume.c)
target_sources(test_tenants PRIVATE resume.c)
target_sources(test_dispatch PRIVATE worker.c)
target_sources(test_layers PRIVATE worker.c)
