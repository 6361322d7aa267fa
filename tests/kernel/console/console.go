// Package console is what the machine and its guest say to each other: a job in the initramfs, events on the second serial port.
package console

// JobFile is where the guest finds its job.
const JobFile = "/job.json"

// Job is all that a guest is to do.
type Job struct {
	Modules []string // files, each after those it depends on
	Objects []string // BPF objects whose programs are counted; none if nothing is
	Suite   Suite
}

// Suite is a test binary.
type Suite struct {
	Name  string // folder of the package
	Path  string
	Args  []string
	Part  int // of its tests, each Parts-th from this one on
	Parts int // 1 or more; of more parts than one, Args choose no tests
}

// Event is one line from the guest. One of the fields is set, and Suite with Line and Exit.
type Event struct {
	Kernel   string         `json:"kernel,omitempty"`   // the first: what uname says
	Verifier map[string]int `json:"verifier,omitempty"` // instructions that the verifier walked through, by program
	Suite    string         `json:"suite,omitempty"`
	Line     string         `json:"line,omitempty"` // of the suite's output
	Exit     *int           `json:"exit,omitempty"` // the suite has ended
	Error    string         `json:"error,omitempty"`
	Done     bool           `json:"done,omitempty"` // the last
}
