// The bucket engine with the plain loops, for instruction sets that have no loops of their own.
//
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "ks_loops.h"

namespace ksl {
namespace KSL_ISA {
namespace {
using Loops = GenericLoops;
}
}  // namespace KSL_ISA
}  // namespace ksl

#include "ks_engine.h"
