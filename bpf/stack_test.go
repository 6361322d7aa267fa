package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestStackOfCallsFits adds up the stacks of functions that call each other as Linux 5.10 does: in steps of 32 bytes, at most 512. Later
// kernels take steps of 16, so that what does not fit there may fit here.
func TestStackOfCallsFits(t *testing.T) {
	const limit, step = 512, 32
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"net": loadNet, "sock": loadSock, "judge": loadJudge} {
		spec, err := load()
		if err != nil {
			t.Fatal(name, err)
		}
		for _, p := range spec.Programs {
			own, calls := map[string]int{}, map[string][]string{}
			var function string
			for i, ins := range p.Instructions {
				if s := ins.Symbol(); s != "" && !strings.HasPrefix(s, "LBB") {
					function = s
				}
				own[function] = max(own[function], stackDepth(p.Instructions, i))
				if ins.IsFunctionCall() {
					calls[function] = append(calls[function], ins.Reference())
				}
			}
			var deepest func(string) (int, []string)
			deepest = func(f string) (depth int, way []string) {
				for _, g := range calls[f] {
					if d, w := deepest(g); d > depth {
						depth, way = d, w
					}
				}
				return depth + (max(own[f], 1)+step-1)/step*step, append([]string{f}, way...)
			}
			if depth, way := deepest(p.Name); depth > limit {
				t.Errorf("%s: %d bytes of stack, more than %d", p.Name, depth, limit)
				for _, f := range way {
					t.Logf("%5d %s", own[f], f)
				}
			} else {
				t.Logf("%s: %d bytes, %v", p.Name, depth, way)
			}
		}
	}
}

// stackDepth is how far below its top an instruction reaches into the stack, or makes a pointer to.
func stackDepth(all asm.Instructions, i int) int {
	const frame = asm.R10
	ins := all[i]
	switch op := ins.OpCode; {
	case op.Class().IsLoad() && ins.Src == frame, op.Class().IsStore() && ins.Dst == frame:
		return int(-ins.Offset)
	case op.Class() == asm.ALU64Class && op.ALUOp() == asm.Add && op.Source() == asm.ImmSource && i > 0:
		if from := all[i-1]; from.OpCode.ALUOp() == asm.Mov && from.Src == frame && from.Dst == ins.Dst {
			return int(-ins.Constant)
		}
	}
	return 0
}
