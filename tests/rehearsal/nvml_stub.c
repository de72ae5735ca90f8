/* Stands for the driver's libnvidia-ml.so.1 on a machine without a driver, so that FBGEMM's CUDA build can be loaded.
 * These are the functions of it that FBGEMM names; each answers NVML_ERROR_DRIVER_NOT_LOADED. */
#define NO_DRIVER(function) \
    int function(void) { return 9; }

NO_DRIVER(nvmlInit_v2)
NO_DRIVER(nvmlShutdown)
NO_DRIVER(nvmlDeviceGetCount_v2)
NO_DRIVER(nvmlDeviceGetHandleByIndex_v2)
NO_DRIVER(nvmlDeviceGetPciInfo_v3)
NO_DRIVER(nvmlDeviceGetNvLinkState)
NO_DRIVER(nvmlDeviceGetNvLinkRemotePciInfo_v2)
