// Package dnstop shows what pods ask the cluster DNS of a node for, and who answers: the programs in the kernel and the agent's resolver
// tell it, while it looks.
package dnstop
