package analysis

import "testing"

// BenchmarkLint looks at 5 000 pods and 1 000 policies.
func BenchmarkLint(b *testing.B) {
	s := bigState(100, 10, 5, 1000)
	for b.Loop() {
		b.ReportMetric(float64(len(Lint(s))), "findings")
	}
}

// BenchmarkDiff compares two States of that size, one without a policy of the other.
func BenchmarkDiff(b *testing.B) {
	s := bigState(100, 10, 5, 1000)
	o := s
	o.NetworkPolicies = o.NetworkPolicies[1:]
	for b.Loop() {
		b.ReportMetric(float64(len(Compare(s, o).Changes)), "changes")
	}
}
