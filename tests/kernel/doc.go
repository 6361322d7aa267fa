// Kernel runs the tests of the node network on other kernels than this machine's: Debian's, each in an emulated machine.
//
// Its one idea: the test binaries are static, so a kernel, an initramfs of a few files and a serial port are a whole test machine.
//
//	apt -> vmlinuz, modules ─┐
//	go test -c -> suites ────┼─> initramfs -> QEMU -> guest (first process) -> events on the second serial port -> report
//	go build ./guest ────────┘
//
// It fails if a test fails, a kernel panics or says nothing more, a kernel can't be had, the verifier walks through clearly more
// instructions of a program than verifier.json says, or a packet takes clearly more of them than costs.json says.
package main
