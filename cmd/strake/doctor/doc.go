// Package doctor examines a node: kernel, mounts, sysctls, uplink, clock, what other network plugins left, and whether the node network
// holds what the API says that it should. It changes nothing.
//
//	Examine(node) → Report: one Check for each thing looked at, in groups
//
// What is compared is split from how it is read, so that each judgement is a pure function with a table of cases.
package doctor
