// Package flows keeps a record of the flows of a node's pods: who talked to whom, what policies said of it and which, on disk within a bound. The
// kernel's programs write it (bpf.FlowRecord), a Recorder in the agent gives names to what they write, and Read and Follow give it back, to
// `strake policy flows` and to who judges what was seen by other policies.
//
// The record is a folder of files with lines of JSON, each a Line. There are two sorts of files, of which the oldest go first:
//
//	flows-*.jsonl   each new flow and each packet that policies deny; samples, if there are more in a second than Config.Rate of bpf
//	counts-*.jsonl  how many flows and packets of each class there were since the line before of that class: exact, all of them
//
// Lines of a sort are numbered without gaps; what could not be recorded is a line of its own, "loss". Lines are written within a second of what they
// tell, and that second is what an agent that is killed leaves untold of flows that it had read; what it had not read yet waits in the kernel for the next
// one. Counts wait in the kernel until they are written. A line that was half written is taken away by who writes next, and not told by who reads.
package flows
