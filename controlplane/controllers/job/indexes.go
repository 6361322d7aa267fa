package job

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxIndex is more than the API allows (10^5 completions of Indexed mode), and bounds what a bad string costs.
const maxIndex = 1 << 20

// parseIndexes reads status.completedIndexes: "1,3-5,7". What is not understood is left out.
func parseIndexes(s string) map[int]bool {
	out := map[int]bool{}
	for _, part := range strings.Split(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		if err != nil || a < 0 {
			continue
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		if b > maxIndex || b-a > maxIndex {
			continue
		}
		for i := a; i <= b; i++ {
			out[i] = true
		}
	}
	return out
}

// formatIndexes writes the form that parseIndexes reads.
func formatIndexes(m map[int]bool) string {
	var parts []string
	sorted := slices.Sorted(maps.Keys(m))
	for i := 0; i < len(sorted); {
		j := i
		for j+1 < len(sorted) && sorted[j+1] == sorted[j]+1 {
			j++
		}
		switch j - i {
		case 0:
			parts = append(parts, strconv.Itoa(sorted[i]))
		case 1:
			parts = append(parts, strconv.Itoa(sorted[i]), strconv.Itoa(sorted[j]))
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", sorted[i], sorted[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
