// Package monitor shows what becomes of packets, with the names of who sends them and who should get them.
//
//	bpf.Monitor → Decode (headers) → Names (pods, Services, nodes) → Filter → a line or a JSON object
package monitor
