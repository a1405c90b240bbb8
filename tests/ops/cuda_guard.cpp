// Lets torch's CPU build index tensors of device "cuda" that have no memory (FakeTensors): indexing asks for a guard of the
// current device, and this one does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
