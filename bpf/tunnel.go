package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Sizes of struct bpf_tunnel_key: since Linux 6.0 the outer source address is at its end.
const (
	tunnelKeySizeLocal = 44
)

// tunnelHasLocal asks the kernel whether it takes the outer source address of a tunnel.
func tunnelHasLocal() (bool, error) {
	spec := &ebpf.ProgramSpec{
		Name: "strake_probe", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
		},
	}
	for off := int16(-48); off < 0; off += 8 {
		spec.Instructions = append(spec.Instructions, asm.StoreMem(asm.RFP, off, asm.R0, asm.DWord))
	}
	spec.Instructions = append(spec.Instructions,
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -48),
		asm.Mov.Imm(asm.R3, tunnelKeySizeLocal),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkbSetTunnelKey.Call(),
		asm.Return(),
	)
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return false, fmt.Errorf("bpf: probe of the tunnel's key: %w", err)
	}
	defer p.Close()
	ret, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return false, fmt.Errorf("bpf: probe of the tunnel's key: %w", err)
	}
	return ret == 0, nil
}
